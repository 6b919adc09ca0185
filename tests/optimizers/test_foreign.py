"""Optimizers of torch.optim and optax by name: their updates, and resuming to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from experiments import build

from seqrun.callbacks import BaseCallback
from seqrun.checks import ConfigError
from seqrun.cli import preflight
from seqrun.cli.listing import CONF
from seqrun.config import build as building
from seqrun.config.compose import composed, composing, experiment_of, register
from seqrun.plan import Chunk
from seqrun.training.callback import Run

SMALL = ("algo=naive", "benchmark.num_tasks=2", "benchmark.samples_per_task=60")
THEIRS = {
    "NAdam": ("torch", "torch.optim.NAdam", ("+optimizer.betas=[0.8,0.99]",)),
    "Adadelta": ("torch", "torch.optim.Adadelta", ("optimizer.lr=0.5",)),
    "ASGD": ("torch", "torch.optim.ASGD", ("optimizer.lr=0.1",)),
    "Rprop": ("torch", "torch.optim.Rprop", ()),
    "Adafactor": ("torch", "torch.optim.Adafactor", ()),
    "lion": ("jax", "optax.lion", ("optimizer.lr=0.001",)),
    "prodigy": ("jax", "optax.contrib.prodigy", ("optimizer.lr=1.0",)),
    "adafactor": ("jax", "optax.adafactor", ("optimizer.lr=0.01",)),
}


class KeepsCheckpoint(BaseCallback):
    """Keep a checkpoint of the middle of the second task."""

    kept: Any = None

    def on_after_chunk(self, run: Run, chunk: Chunk) -> None:
        if run.task == 2 and run.epoch == 2 and self.kept is None:
            self.kept = run.checkpoint()


def experiment(*overrides: str):
    """Return the experiment that a command line composes."""
    register()
    with composing(CONF):
        return experiment_of(composed("config", [*SMALL, *overrides]))


@pytest.mark.ci
@pytest.mark.parametrize("name", THEIRS)
def test_resuming_is_equal_to_the_bit(name: str):
    """In the middle of a task, whatever the optimizer's state is."""
    backend, target, options = THEIRS[name]
    of = experiment(
        f"backend={backend}", f"optimizer._target_={target}", *options,
        "training.chunk_steps=2", "callbacks=[]", "logger=[]", "training.epochs_per_task=3",
    )  # fmt: skip
    whole = building.build(of, 0)
    keeps = KeepsCheckpoint()
    whole.callbacks = [keeps]
    whole.fit()
    resumed = building.build(of, 0)
    resumed.fit(resume_from=keeps.kept)
    ours, theirs = whole.export_arrays(), resumed.export_arrays()
    assert ours.keys() == theirs.keys() and any(n.startswith("optimizer/") for n in ours)
    for key, array in ours.items():
        assert np.array_equal(array, theirs[key]), key


def test_the_update_is_theirs():
    import torch

    from seqrun.optimizers.foreign.torch import Optimizer

    values = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    ours = Optimizer(lr=0.1, make=torch.optim.RAdam, target="torch.optim.RAdam")
    theirs = torch.optim.RAdam([values[1]], lr=0.1)
    state = ours.init({"x": values[0]})
    for step in range(8):
        gradient = torch.tensor([1.0, -2.0, step])
        _, state = ours.update({"x": gradient}, state, {"x": values[0]}, {"lr": 0.1})
        values[1].grad = gradient
        theirs.step()
        assert torch.equal(*values)
    assert int(state.started) == 1


def test_keys_of_the_file_that_nobody_set_are_dropped():
    node = experiment("optimizer._target_=torch.optim.AdamW").config["optimizer"]
    assert node == {"_target_": "torch.optim.AdamW"}
    node = experiment("optimizer._target_=torch.optim.AdamW", "optimizer.lr=0.05").config
    assert node["optimizer"] == {"_target_": "torch.optim.AdamW", "lr": 0.05}
    made = building.build(experiment("optimizer._target_=torch.optim.AdamW"), 0).optimizer
    assert made.lr == 0.001  # theirs


@pytest.mark.ci
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("_target_=torch.optim.LBFGS", "needs a closure that evaluates the loss"),
        ("_target_=torch.optim.SparseAdam", "does not support dense gradients"),
        ("_target_=optax.adam", "must be a torch.optim.Optimizer with backend=torch"),
        ("_target_=torch.optim.AdamW optimizer.momentum=0.9", "optimizer.momentum=0.9: no such"),
        ("_target_=torch.optim.Adam +optimizer.betas=[2,3]", "Invalid beta parameter"),
        ("_target_=torch.optim.AdamW optimizer.lr=-1", "optimizer.lr=-1: must be a number > 0"),
        ("_target_=torch.optim.Muon optimizer.lr=0.1", "only supports 2D"),
        ("_target_=optax.lion backend=jax", "optimizer.lr: must be given"),
        ("_target_=optax.lbfgs optimizer.lr=1 backend=jax", "needs more than gradients"),
        ("_target_=optax.polyak_sgd backend=jax", "has no learning_rate"),
        ("_target_=torch.optim.Adam backend=jax", "must be a function of optax"),
        ("_target_=torch.nn.Linear", "must be a torch.optim.Optimizer"),
        ("_target_=optax.clip backend=jax +optimizer.max_delta=1", "has no learning_rate"),
        ("lr=[0.1,0.2,0.3]", r"has 3 entries, must have benchmark.num_tasks=2"),
    ],
)
def test_what_is_refused(line: str, message: str, tmp_path: Path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    argv = [*SMALL, *f"optimizer.{line}".split()]
    assert preflight.main(argv, CONF) == preflight.BAD_INPUT
    err = capfd.readouterr().err
    assert message in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_a_rate_for_each_task(backend: str):
    algorithm = build("naive", backend, optimizer_options={"lr": [0.1, 0.2, 0.3]})
    rates = []
    for task in (1, 2, 3):
        algorithm.progress.task = task
        rates.append(algorithm.hparams()["lr"])
    assert rates == [0.1, 0.2, 0.3]
    with pytest.raises(ConfigError, match="has 2 entries"):
        build("naive", backend, optimizer_options={"lr": [0.1, 0.2]})
