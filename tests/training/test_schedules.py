"""Learning-rate schedules: torch's own values, the same on both backends, resumed to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from experiments import build, run

from seqrun.callbacks import BaseCallback
from seqrun.checks import ConfigError
from seqrun.plan import Chunk
from seqrun.training.callback import Run
from seqrun.training.options import TrainingOptions
from seqrun.training.schedules import LR_FACTOR, factors

TOTAL, EPOCH = 40, 10


def ours(**options: Any) -> np.ndarray:
    """Return the factors of all steps."""
    return factors(TrainingOptions(**options), np.arange(TOTAL), TOTAL, EPOCH)


def theirs(kind: str, every: int = 1, **options: Any) -> np.ndarray:
    """Return the rates of a scheduler of torch, which advances `every` so many steps."""
    import torch

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = getattr(torch.optim.lr_scheduler, kind)(optimizer, **options)
    rates = []
    for step in range(TOTAL):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if (step + 1) % every == 0 and step + 1 < TOTAL:
            scheduler.step()
    return np.array(rates)


@pytest.mark.parametrize(
    ("options", "kind", "same"),
    [
        (
            {"lr_schedule": "linear", "lr_floor": 0.2},
            "LinearLR",
            {"start_factor": 1.0, "end_factor": 0.2, "total_iters": TOTAL - 1},
        ),
        (
            {"lr_schedule": "cosine", "lr_floor": 0.1},
            "CosineAnnealingLR",
            {"T_max": TOTAL - 1, "eta_min": 0.1},
        ),
        (
            {"lr_schedule": "cosine", "lr_restart_epochs": 1},
            "CosineAnnealingWarmRestarts",
            {"T_0": EPOCH},
        ),
        (
            {"lr_schedule": "cosine", "lr_restart_epochs": 1, "lr_restart_factor": 2.0},
            "CosineAnnealingWarmRestarts",
            {"T_0": EPOCH, "T_mult": 2},
        ),
        (
            {"lr_schedule": "step", "lr_step_epochs": 2, "lr_step_factor": 0.3},
            "StepLR",
            {"step_size": 2, "gamma": 0.3, "every": EPOCH},
        ),
        (
            {"lr_schedule": "one_cycle"},
            "OneCycleLR",
            {"max_lr": 1.0, "total_steps": TOTAL, "final_div_factor": 1e12},
        ),
    ],
)
def test_schedules_are_torchs(options: dict, kind: str, same: dict):
    found = ours(**options)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, theirs(kind, **same), atol=1e-6)


def test_warmup_and_floor():
    found = ours(lr_schedule="linear", lr_warmup_steps=4, lr_floor=0.5)
    np.testing.assert_allclose(found[:5], [0.25, 0.5, 0.75, 1.0, 1.0])
    assert found[-1] == 0.5 and (np.diff(found[4:]) < 0).all()
    assert (ours(lr_warmup_steps=4)[4:] == 1).all()
    assert (ours(lr_schedule="step", lr_step_factor=0.1, lr_floor=0.05)[20:] == 0.05).all()
    assert (ours() == 1).all() and not TrainingOptions().has_schedule


class Factors(BaseCallback):
    """Keep each step's factor, and a checkpoint of the middle of the second task."""

    def __init__(self) -> None:
        self.factors: list[float] = []
        self.kept: Any = None

    def on_after_chunk(self, run: Run, chunk: Chunk) -> None:
        self.factors += chunk.arrays[LR_FACTOR].tolist()
        if run.task == 2 and run.epoch == 2 and self.kept is None:
            self.kept = run.checkpoint()


@pytest.mark.parametrize("scope", ["task", "run"])
def test_the_scope(scope: str):
    """A task's schedule starts again with the task; a run's goes on over all tasks."""
    seen = Factors()
    training = {"lr_schedule": "linear", "lr_schedule_scope": scope, "epochs_per_task": 2}
    run("naive", "torch", callbacks=[seen], training=training)
    steps = len(seen.factors) // 3
    tasks = np.array(seen.factors).reshape(3, steps)
    if scope == "task":
        np.testing.assert_allclose(tasks, np.tile(np.linspace(1, 0, steps), (3, 1)), atol=1e-6)
    else:
        np.testing.assert_allclose(tasks.ravel(), np.linspace(1, 0, 3 * steps), atol=1e-6)


@pytest.mark.ci
@pytest.mark.parametrize("algo", ["naive", "er", "ewc", "lamaml"])
@pytest.mark.parametrize("schedule", ["cosine", "one_cycle"])
def test_twins_and_resuming(algo: str, schedule: str):
    """Both backends train with the same rates; a run resumed in a schedule has the same bits."""
    options = {"sync_update": True} if algo == "lamaml" else {}
    training = {"lr_schedule": schedule, "epochs_per_task": 3, "chunk_steps": 2}
    losses, arrays = {}, {}
    for backend in ("torch", "jax"):
        seen = Factors()
        trace = run(algo, backend, callbacks=[seen], training=training, **options)
        losses[backend] = trace.losses
        resumed = build(algo, backend, training=training, **options)
        resumed.fit(resume_from=seen.kept)
        arrays = trace.algorithm.export_arrays()
        for name, array in resumed.export_arrays().items():
            assert np.array_equal(array, arrays[name]), name
    np.testing.assert_allclose(losses["torch"], losses["jax"], rtol=2e-3, atol=2e-4)
    constant = run(algo, "torch", training={"epochs_per_task": 3}, **options).losses
    assert not np.allclose(constant, losses["torch"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"lr_schedule": "cos"},
            "lr_schedule='cos': must be one of .*did you mean cosine",
        ),
        (
            {"lr_schedule_scope": "all"},
            "lr_schedule_scope='all': must be one of task, run",
        ),
        ({"lr_warmup_steps": -1}, "training.lr_warmup_steps=-1: must be an integer >= 0"),
        ({"lr_schedule": "linear", "lr_floor": 1.0}, r"training.lr_floor=1.0: .* \[0, 1\)"),
        ({"lr_floor": 0.1}, "training.lr_floor=0.1: has no effect with .*lr_schedule=constant"),
        ({"lr_schedule": "step", "lr_step_epochs": 0}, "training.lr_step_epochs=0: must be"),
        ({"lr_schedule": "step", "lr_step_factor": 0}, r"training.lr_step_factor=0: .* \(0, 1\]"),
        ({"lr_schedule": "cosine", "lr_restart_epochs": 0}, "lr_restart_epochs=0: must be"),
        ({"lr_schedule": "cosine", "lr_restart_factor": 0.5}, "lr_restart_factor=0.5: must be"),
        ({"lr_schedule": "linear", "lr_step_epochs": 2}, "has no effect .* only with step"),
        ({"lr_schedule": "one_cycle", "lr_warmup_steps": 2}, "lr_warmup_steps=2: has no effect"),
    ],
)
def test_bad_values(options: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        TrainingOptions(**options)
