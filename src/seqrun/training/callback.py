"""BaseCallback: a hook before and after every event of the flow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from seqrun.algorithms.base import BaseAlgorithm
    from seqrun.training.step import Step
    from seqrun.plan import Chunk

EVENTS = (
    "setup",
    "fit",
    "task",
    "epoch",
    "chunk",
    "training_step",
    "backward",
    "optimizer_step",
    "validation",
    "teardown",
)
STEP_EVENTS = ("training_step", "backward", "optimizer_step")


class BaseCallback:
    """Observe or change a run by overriding hooks.

    Around each event E the flow runs: the algorithm's `on_before_E`, every callback's
    `on_before_E` (`on_before_E_callbacks`), E itself, the algorithm's `on_after_E`, every
    callback's `on_after_E` (`on_after_E_callbacks`). A hook that nobody overrides costs nothing.

    Hooks of the step-level events (training_step, backward, optimizer_step) also get the `step`:
    they may read and replace its fields, such as `step.gradients`. A callback that overrides one
    is host code: on JAX it gets one compiled step per call instead of a compiled stretch.
    """

    products: ClassVar[tuple[str, ...]] = ()
    """Files and folders that it leaves in a run's directory."""

    @property
    def pause_every(self) -> int | None:
        """Steps after which `on_pause` is called, counted from the run's first; None = never."""
        return None

    def on_pause(self, algorithm: BaseAlgorithm, step: int) -> None:
        """Look at the model after `step` steps, wherever in a chunk they end; change nothing.

        The engines stop for it without changing a bit of the run.
        """

    def check(self, algorithm: BaseAlgorithm) -> None:
        """Raise ConfigError unless the callback fits the run's parts; nothing is prepared yet."""

    def export_state(self, algorithm: BaseAlgorithm) -> dict[str, Any]:
        """Return what a resumed run must know: name -> plain data, or a NumPy array."""
        return {}

    def check_state(self, algorithm: BaseAlgorithm, state: Mapping[str, Any]) -> None:
        """Raise CheckpointError unless `import_state` can go on from `state`, which anyone wrote.

        The data are prepared, counters and arrays are the checkpoint's, and nothing has started.
        Then the checkpoint before is tried.
        """

    def import_state(self, algorithm: BaseAlgorithm, state: Mapping[str, Any]) -> None:
        """Continue from what `export_state` returned; hooks before the position have run again."""

    def on_before_setup(self, algorithm: BaseAlgorithm) -> None: ...
    def on_after_setup(self, algorithm: BaseAlgorithm) -> None: ...
    def on_before_fit(self, algorithm: BaseAlgorithm) -> None: ...
    def on_after_fit(self, algorithm: BaseAlgorithm) -> None: ...
    def on_before_task(self, algorithm: BaseAlgorithm) -> None: ...
    def on_after_task(self, algorithm: BaseAlgorithm) -> None: ...
    def on_before_epoch(self, algorithm: BaseAlgorithm) -> None: ...
    def on_after_epoch(self, algorithm: BaseAlgorithm) -> None: ...
    def on_before_chunk(self, algorithm: BaseAlgorithm, chunk: Chunk) -> None: ...
    def on_after_chunk(self, algorithm: BaseAlgorithm, chunk: Chunk) -> None: ...
    def on_before_training_step(self, algorithm: BaseAlgorithm, step: Step) -> None: ...
    def on_after_training_step(self, algorithm: BaseAlgorithm, step: Step) -> None: ...
    def on_before_backward(self, algorithm: BaseAlgorithm, step: Step) -> None: ...
    def on_after_backward(self, algorithm: BaseAlgorithm, step: Step) -> None: ...
    def on_before_optimizer_step(self, algorithm: BaseAlgorithm, step: Step) -> None: ...
    def on_after_optimizer_step(self, algorithm: BaseAlgorithm, step: Step) -> None: ...
    def on_before_validation(self, algorithm: BaseAlgorithm) -> None: ...
    def on_after_validation(self, algorithm: BaseAlgorithm) -> None: ...
    def on_before_teardown(self, algorithm: BaseAlgorithm) -> None: ...
    def on_after_teardown(self, algorithm: BaseAlgorithm) -> None: ...
