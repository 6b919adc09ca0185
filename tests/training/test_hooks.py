"""Hooks of algorithms and callbacks: their order, and which arguments they get."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from experiments import BACKENDS, algorithm_class, build, every_backend, run

from seqrun.checks import ConfigError
from seqrun.training.callback import EVENTS, STEP_EVENTS, BaseCallback, Run

HOOKS = [f"on_{when}_{event}" for event in EVENTS for when in ("before", "after")]
SHORT = {"stream": {"num_tasks": 1, "samples_per_task": 25}, "training": {"epochs_per_task": 1}}


def recording(base: type, who: str, log: list, hooks: list[str]) -> type:
    """Return a subclass whose hooks write their names into `log`."""

    def make(hook: str) -> Any:
        def record(self: Any, *args: Any) -> None:
            getattr(super(kind, self), hook)(*args)
            log.append((who, hook))

        return record

    kind: type = type(f"Recording{base.__name__}", (base,), {hook: make(hook) for hook in hooks})
    return kind


@pytest.mark.ci
@every_backend
def test_hooks_run_in_the_documented_order(backend: str):
    log: list[tuple[str, str]] = []
    # Step hooks of a JAX algorithm write into the list only while they are traced: they are
    # checked below.
    mine = [h for h in HOOKS if backend == "torch" or h.split("_", 2)[2] not in STEP_EVENTS]
    kind = recording(algorithm_class("naive", backend), "algorithm", log, mine)
    callbacks = [recording(BaseCallback, name, log, HOOKS)() for name in ("first", "second")]
    build("naive", backend, kind=kind, callbacks=callbacks, **SHORT).fit()

    def around(event: str, inside: list) -> list:
        def part(when: str) -> list:
            hook = f"on_{when}_{event}"
            own = [("algorithm", hook)] if hook in mine else []
            return [*own, ("first", hook), ("second", hook)]

        return [*part("before"), *inside, *part("after")]

    step = around("training_step", around("backward", []) + around("optimizer_step", []))
    # 25 samples in batches of 10: a chunk of two steps and one of the partial batch
    epoch = around("epoch", around("chunk", 2 * step) + around("chunk", step))
    tasks = around("validation", []) + around("task", epoch) + around("validation", [])
    expected = around("setup", []) + around("fit", tasks) + around("teardown", [])
    assert log == expected


@pytest.mark.ci
def test_algorithm_step_hooks_are_traced_on_jax_and_run_on_every_step():
    class Counting(algorithm_class("naive", "jax")):
        def on_after_optimizer_step(self, step: Any) -> None:
            step.params = {n: p + 1.0 for n, p in step.params.items()}
            step.params = {n: p - 1.0 for n, p in step.params.items()}
            step.gradients = {}

        def on_before_optimizer_step(self, step: Any) -> None:
            step.gradients = {n: 0 * g for n, g in step.gradients.items()}

    algorithm = build("naive", "jax", kind=Counting, **SHORT)
    algorithm.fit()
    for name, value in algorithm.initial_weights().items():
        np.testing.assert_allclose(algorithm.export_arrays()[f"params/{name}"], value, atol=1e-6)


@pytest.mark.ci
@every_backend
def test_only_overridden_hooks_are_called(backend: str):
    algorithm = build("naive", backend, callbacks=[BaseCallback()], **SHORT)
    algorithm.fit()
    events = algorithm.engine.events
    assert all(hooks == [] for hooks in (*events.before.values(), *events.after.values()))


@pytest.mark.ci
@every_backend
def test_an_algorithm_may_decide_when_hooks_of_callbacks_are_called(backend: str):
    """It overrides on_before_<event>_callbacks."""
    log: list = []
    base = algorithm_class("naive", backend)

    class Mute(base):
        def on_before_epoch_callbacks(self) -> None:
            log.append("muted")

    callback = recording(BaseCallback, "callback", log, ["on_before_epoch", "on_after_epoch"])()
    build("naive", backend, kind=Mute, callbacks=[callback], **SHORT).fit()
    assert log == ["muted", ("callback", "on_after_epoch")]


@every_backend
def test_a_step_hook_reads_batch_loss_and_gradients(backend: str):
    seen = []

    class Reader(BaseCallback):
        def on_before_backward(self, run: Run, step: Any) -> None:
            assert step.loss is None and not step.gradients

        def on_after_backward(self, run: Run, step: Any) -> None:
            shapes = {n: tuple(g.shape) for n, g in step.gradients.items()}
            seen.append((float(step.loss), step.batch.x.shape[0], sorted(shapes)))

    trace = run("naive", backend, callbacks=[Reader()], **SHORT)
    assert [s[0] for s in seen] == pytest.approx(trace.losses.tolist(), rel=1e-6)
    assert [s[1] for s in seen] == [10, 10, 5]
    assert seen[0][2] == sorted(trace.algorithm.engine.parameter_shapes())


# ---- an algorithm written as a callback


class PullToLastTask(BaseCallback):
    """L2 pull to the last task's solution: lambda sum_i (theta_i - theta*_i)^2."""

    def __init__(self, strength: float) -> None:
        self.strength, self.anchor = strength, None

    def on_after_backward(self, run: Run, step: Any) -> None:
        if self.anchor is not None:
            step.gradients = {
                n: g + 2 * self.strength * (step.params[n] - self.anchor[n])
                for n, g in step.gradients.items()
            }

    def on_after_task(self, run: Run) -> None:
        self.anchor = run.algorithm.engine.snapshot()[0]


def as_subclass(backend: str) -> type:
    """Return the same method as a RegularizationAlgorithm whose importance is 1."""
    from importlib import import_module

    parent = import_module(f"seqrun.algorithms.regularization.{backend}").RegularizationAlgorithm

    class Pull(parent):
        name = "pull"
        coefficient_name = "strength"
        strength = 2.0

        def calculate_parameter_importance(self) -> dict[str, Any]:
            return {n: 0 * p + 1 for n, p in self.params.items()}

        def consolidate(self, importance: dict[str, Any]) -> Any:
            return self.state._replace(anchor=self.engine.snapshot()[0], importance=importance)

    return Pull


def test_an_algorithm_may_be_a_callback():
    """It works on both backends and equals the same method written as a subclass."""
    spec = {"stream": {"samples_per_task": 45}, "training": {"epochs_per_task": 1}}
    traces = [run("naive", b, callbacks=[PullToLastTask(2.0)], **spec) for b in BACKENDS]
    traces += [run("naive", b, kind=as_subclass(b), **spec) for b in BACKENDS]
    plain = run("naive", "torch", **spec)
    for trace in traces:
        np.testing.assert_allclose(trace.losses, traces[0].losses, atol=1e-5)
        for name in plain.arrays:
            np.testing.assert_allclose(trace.arrays[name], traces[0].arrays[name], atol=1e-5)
    assert abs(plain.losses - traces[0].losses).max() > 1e-3


# ---- classes that override hooks of earlier versions


def overriding(base: type, name: str, value: Any) -> type:
    """Return a subclass with one method or attribute of its own."""
    return type("Mine", (base,), {name: value})


@every_backend
@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("training_loss", lambda self, step: None, r"losses\(self, step\), which returns Losses"),
        ("hyper", lambda self: {}, r"override hparams\(self\)"),
        ("pool_reads", ("index", "replay"), "override batch_names"),
        ("task_pool", lambda self, data: data, "override make_replay_dataset"),
        (
            "on_after_task",
            lambda self, algorithm: None,
            r"Mine.on_after_task\(self, algorithm\): must be on_after_task\(self\): an algorithm",
        ),
        (
            "on_after_backward",
            lambda self, algorithm, step: None,
            r"must be on_after_backward\(self, step\)",
        ),
        ("on_before_chunk", lambda self: None, r"must be on_before_chunk\(self, chunk\)"),
        ("setup", lambda self: None, r"override on_before_setup\(self\)"),
        ("training_step", lambda self, step: None, r"override on_before_training_step\(self, step"),
        ("start_engine", lambda self: None, r"override start\(self\) of an engine"),
        ("hyper_names", ("lr",), "override hparam_names"),
        ("initial_kept", lambda self: None, r"override initial_persistent_state\(self\)"),
        ("evaluation_reads", lambda self, task: (), r"override evaluation_arrays\(self, task\)"),
    ],
)
def test_an_algorithm_with_old_hooks_is_refused(backend: str, name: str, value: Any, remedy: str):
    kind = overriding(algorithm_class("naive", backend), name, value)
    with pytest.raises(ConfigError, match=remedy):
        build("naive", backend, kind=kind, **SHORT)


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("pause_every", 3, "override every_n_steps"),
        ("on_pause", lambda self, algorithm, step: None, r"override on_every_n_steps\(self, run"),
        (
            "on_after_task",
            lambda self, algorithm: None,
            r"must be on_after_task\(self, run\): a callback gets the run",
        ),
        ("on_after_chunk", lambda self, run: None, r"must be on_after_chunk\(self, run, chunk\)"),
        ("export_state", lambda self, algorithm: {}, r"must be export_state\(self, run\)"),
    ],
)
def test_a_callback_with_old_hooks_is_refused(name: str, value: Any, remedy: str):
    callback = overriding(BaseCallback, name, value)()
    with pytest.raises(ConfigError, match=remedy):
        build("naive", "torch", callbacks=[callback], **SHORT)


def test_hooks_with_more_general_signatures_are_accepted():
    kind = overriding(algorithm_class("naive", "torch"), "on_after_task", lambda *args: None)
    hooks: list[Any] = [lambda self, *args: None, lambda self, run, **kw: None]
    hooks.append(lambda self, run, extra=1: None)
    callbacks = [overriding(BaseCallback, "on_after_task", hook)() for hook in hooks]
    assert build("naive", "torch", kind=kind, callbacks=callbacks, **SHORT).fit()


@every_backend
def test_an_optimizer_with_old_names_is_refused(backend: str):
    algorithm = build("naive", backend, **SHORT)
    old = overriding(type(algorithm.optimizer), "hyper", lambda self: {})(lr=0.1)
    with pytest.raises(ConfigError, match=r"Mine.hyper: is no longer called: override hparams"):
        dataclasses.replace(algorithm, optimizer=old)


def test_static_hooks_are_accepted():
    steps = []
    hook = staticmethod(lambda run: steps.append(run.step))
    own = classmethod(lambda cls, run: steps.append(run.task))
    callbacks = [overriding(BaseCallback, "on_after_task", h)() for h in (hook, own)]
    assert build("naive", "torch", callbacks=callbacks, **SHORT).fit()
    assert steps == [3, 1]


def test_a_callback_that_takes_the_run_for_the_algorithm_is_told():
    """Its hook has an argument of any name, so that only its use shows the mistake."""
    hook = overriding(BaseCallback, "on_after_epoch", lambda self, algo: algo.params)
    with pytest.raises(AttributeError, match="run.params: .* it is run.algorithm.params"):
        build("naive", "torch", callbacks=[hook()], **SHORT).fit()


@every_backend
def test_losses_of_another_kind_are_refused(backend: str):
    kind = algorithm_class("naive", backend)
    bare = overriding(kind, "losses", lambda self, step: tuple(kind.losses(self, step)))
    message = r"Mine.losses: must return Losses\(task, total, logits\)"
    with pytest.raises(TypeError, match=message):
        build("naive", backend, kind=bare, **SHORT).fit()
