"""Hydra as its users know it: command lines that any Hydra application accepts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from seqrun.cli import preflight
from seqrun.cli.listing import CONF

Check = Callable[[list[preflight.Job]], Any]


def key(name: str, value: Any) -> Check:
    """Return a check that a key of the one job has a value."""
    return lambda jobs: OmegaConf.select(OmegaConf.create(dict(jobs[0].config)), name) == value


def number(count: int) -> Check:
    """Return a check of the number of jobs."""
    return lambda jobs: len(jobs) == count


def nothing(jobs: list[preflight.Job]) -> bool:
    """Check that the command only shows something."""
    return jobs == []


USAGES: dict[str, Check] = {
    # overrides
    "seed=3": key("seed", 3),
    "++seed=3": key("seed", 3),
    "++algo.clip=2.0": key("algo.clip", 2.0),
    "~tags": key("tags", []),
    "notes='a b'": key("notes", "a b"),
    'notes="a, b: c"': key("notes", "a, b: c"),
    "notes=null": key("notes", None),
    "notes=": key("notes", ""),
    "tags=[a,b]": key("tags", ["a", "b"]),
    "seed=[0,1]": key("seed", [0, 1]),
    "training.epochs_per_task=[1,2,1,1,1]": key("training.epochs_per_task", [1, 2, 1, 1, 1]),
    "++training={grad_clip:1.0}": key("training.grad_clip", 1.0),
    "optimizer.lr=1e-2": key("optimizer.lr", 0.01),
    "optimizer.lr=${benchmark.batch_size}": key("optimizer.lr", 10),
    "notes=${oc.env:HOME}": lambda jobs: jobs[0].config["notes"],
    "notes=${oc.env:NOT_SET,other}": key("notes", "other"),
    "notes=${hydra:runtime.choices.algo}": key("notes", "ewc"),
    "notes=${hydra:job.name}": key("notes", "run"),
    "notes=${hydra:runtime.cwd}": lambda jobs: Path(jobs[0].config["notes"]) == Path.cwd(),
    "notes=${algo.ewc_lambda}": lambda jobs: jobs[0].config["notes"],
    "notes=${oc.select:nothing.there,x}": key("notes", "x"),
    # groups
    "algo=er": key("algo.memory_size", 200),
    "algo=er optimizer=adam": key("optimizer.beta1", 0.9),
    "logger=wandb": lambda jobs: [*jobs[0].config["logger"]] == ["console", "local", "wandb"],
    "logger=[wandb]": lambda jobs: [*jobs[0].config["logger"]] == ["wandb"],
    "logger=[]": key("logger", {}),
    "logger=null": key("logger", {}),
    "~logger": key("logger", {}),
    "callbacks=null": key("callbacks", {}),
    "callbacks=timing": lambda jobs: "checkpoint" in jobs[0].config["callbacks"],
    "experiment=example": number(1),
    "debug=batch": number(1),
    "+callbacks.mine._target_=seqrun.callbacks.TimingCallback": number(1),
    "algo=er algo._target_=seqrun.algorithms.er.jax.ER backend=jax": number(1),
    # flags
    "--help": nothing,
    "--hydra-help": nothing,
    "--cfg job": nothing,
    "--cfg hydra": nothing,
    "--cfg all": nothing,
    "--cfg job --resolve": nothing,
    "--cfg job --package algo": nothing,
    "--info": nothing,
    "--info searchpath": nothing,
    "--info defaults-tree": nothing,
    "--config-name config seed=1": key("seed", 1),
    "--config-dir own algo=mine": key("algo.ewc_lambda", 7.0),
    "--config-dir own --config-name primary": key("algo.memory_size", 33),
    "-cd own algo=mine": key("algo.ewc_lambda", 7.0),
    "hydra.searchpath=[file://own] algo=mine": key("algo.ewc_lambda", 7.0),
    # Hydra's own node
    "hydra.run.dir=here": lambda jobs: jobs[0].directory == Path("here").absolute(),
    "hydra.job.chdir=true": number(1),
    "hydra.job.name=other": number(1),
    "hydra.verbose=true": number(1),
    "hydra.output_subdir=null": number(1),
    "hydra/job_logging=none hydra/hydra_logging=none": number(1),
    "+hydra.callbacks.x._target_=hydra.experimental.callbacks.LogJobReturnCallback": number(1),
    # multiruns
    "-m seed=0,1": number(2),
    "--multirun seed=0,1 algo=ewc,er": number(4),
    "hydra.mode=MULTIRUN seed=0,1": number(2),
    "-m seed=range(0,3)": number(3),
    "-m seed=range(3)": number(3),
    "-m algo=glob(e*)": number(2),
    "-m algo=choice(er,ewc)": number(2),
    "-m seed=shuffle(range(0,3))": number(3),
    "-m optimizer.lr=sort(0.2,0.1)": number(2),
    "-m logger=wandb,comet": lambda jobs: len(jobs) in (0, 2),
    "-m seed=[0,1],[2,3]": number(2),
    "-m hydra.sweeper.params={seed:'0,1'}": number(2),
    "-m seed=0,1 hydra.sweeper.max_batch_size=1": number(2),
    "-m seed=0,1 hydra.sweep.dir=here hydra.sweep.subdir=${hydra.job.num}": number(2),
    "-m seed=0,1 hydra/launcher=basic": number(2),
    "-m seed=0,1 hydra/launcher=submitit_local": number(2),
    "-m seed=0,1 hydra/launcher=local_processes hydra.launcher.n_jobs=2": number(2),
    "-m hydra/sweeper=optuna optimizer.lr=interval(0.01,0.1)": lambda jobs: jobs,
    "-m hydra/sweeper=optuna optimizer.lr=tag(log,interval(0.01,0.1))": lambda jobs: jobs,
    "-m hydra/sweeper=optuna hydra/sweeper/sampler=random seed=range(3)": lambda jobs: jobs,
    "-m hydra/sweeper=optuna hydra.sweeper.direction=minimize seed=choice(1,2)": lambda jobs: jobs,
    "sweeps=seeds": number(5),
}


@pytest.mark.ci
@pytest.mark.parametrize("line", USAGES)
def test_a_usage(jobs_of, line):
    own = Path("own")
    (own / "algo").mkdir(parents=True)
    (own / "algo" / "mine.yaml").write_text("defaults: [ewc]\newc_lambda: 7.0\n", encoding="utf-8")
    (own / "primary.yaml").write_text(
        "defaults: [config, {override algo: er}, _self_]\nalgo: {memory_size: 33}\n",
        encoding="utf-8",
    )
    if line.startswith("-m logger=wandb,comet"):
        with pytest.raises(Exception, match="the same experiment as logger="):
            preflight.check(line.split(), CONF)
        return
    quoted = "'" in line or '"' in line
    argv = [line] if quoted and not line.startswith("-") else line.split()
    assert USAGES[line](jobs_of(*argv))
