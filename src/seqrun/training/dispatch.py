"""CallbackDispatch: run every callback's hook of an event, and only where one is overridden."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from seqrun.training.callback import EVENTS, STEP_EVENTS, BaseCallback


def has_step_hook(kind: type[BaseCallback]) -> bool:
    """Return whether a class of callbacks overrides a step-level hook, and so is host code."""
    hooks = [f"on_{when}_{event}" for event in STEP_EVENTS for when in ("before", "after")]
    return any(getattr(kind, hook) is not getattr(BaseCallback, hook) for hook in hooks)


class CallbackDispatch:
    """The `on_before_E_callbacks` and `on_after_E_callbacks` of every event E.

    They may be overridden to change when or whether callbacks see an event.
    """

    callbacks: Any
    _overridden: dict[str, list[Callable[..., None]]]

    def collect_callbacks(self) -> None:
        """Note which callbacks override which hook, in the order in which they were given."""
        self._overridden = {}
        for event in EVENTS:
            for hook in (f"on_before_{event}", f"on_after_{event}"):
                self._overridden[hook] = [
                    getattr(c, hook)
                    for c in self.callbacks
                    if getattr(type(c), hook) is not getattr(BaseCallback, hook)
                ]

    def _dispatch(self, hook: str, *args: Any) -> None:
        for call in self._overridden[hook]:
            call(self, *args)

    def on_before_setup_callbacks(self) -> None:
        self._dispatch("on_before_setup")

    def on_after_setup_callbacks(self) -> None:
        self._dispatch("on_after_setup")

    def on_before_fit_callbacks(self) -> None:
        self._dispatch("on_before_fit")

    def on_after_fit_callbacks(self) -> None:
        self._dispatch("on_after_fit")

    def on_before_task_callbacks(self) -> None:
        self._dispatch("on_before_task")

    def on_after_task_callbacks(self) -> None:
        self._dispatch("on_after_task")

    def on_before_epoch_callbacks(self) -> None:
        self._dispatch("on_before_epoch")

    def on_after_epoch_callbacks(self) -> None:
        self._dispatch("on_after_epoch")

    def on_before_chunk_callbacks(self, chunk: Any) -> None:
        self._dispatch("on_before_chunk", chunk)

    def on_after_chunk_callbacks(self, chunk: Any) -> None:
        self._dispatch("on_after_chunk", chunk)

    def on_before_training_step_callbacks(self, step: Any) -> None:
        self._dispatch("on_before_training_step", step)

    def on_after_training_step_callbacks(self, step: Any) -> None:
        self._dispatch("on_after_training_step", step)

    def on_before_backward_callbacks(self, step: Any) -> None:
        self._dispatch("on_before_backward", step)

    def on_after_backward_callbacks(self, step: Any) -> None:
        self._dispatch("on_after_backward", step)

    def on_before_optimizer_step_callbacks(self, step: Any) -> None:
        self._dispatch("on_before_optimizer_step", step)

    def on_after_optimizer_step_callbacks(self, step: Any) -> None:
        self._dispatch("on_after_optimizer_step", step)

    def on_before_validation_callbacks(self) -> None:
        self._dispatch("on_before_validation")

    def on_after_validation_callbacks(self) -> None:
        self._dispatch("on_after_validation")

    def on_before_teardown_callbacks(self) -> None:
        self._dispatch("on_before_teardown")

    def on_after_teardown_callbacks(self) -> None:
        self._dispatch("on_after_teardown")
