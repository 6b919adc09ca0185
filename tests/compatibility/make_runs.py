"""Write the runs of this folder: stopped runs, and the end of the same runs without a stop.

    PYTHONPATH=<checkout>/src python tests/compatibility/make_runs.py <checkout>/conf <folder>

This program works with the code of commit 70036af only, which wrote them. The runs never change:
`test_earlier_runs.py` tests what later code does with them.
"""

from __future__ import annotations

import json
import platform
import shutil
import signal
import sys
import tempfile
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from seqrun import preflight, runner
from seqrun.callbacks import InterruptionCallback
from seqrun.experiment import build
from seqrun.results import Results
from seqrun.seeds import SeedJob, SendingCallback

COMMON = [
    "benchmark.num_tasks=3", "benchmark.batch_size=10", "training.epochs_per_task=2",
    "training.chunk_steps=4", "callbacks=[metrics,checkpoint]", "logger=[local]",
    "logger.local.figures=false", "device=cpu", "num_threads=1",
]  # fmt: skip
ROTATED = [
    "benchmark=rotated_digits", "benchmark.samples_per_task=85", "backbone.width=12",
]  # fmt: skip
CASES: dict[str, list[str]] = {
    "naive": [*ROTATED, "algo=naive", "optimizer.momentum=0.9"],
    "er": [*ROTATED, "algo=er", "algo.memory_size=30"],
    "si": [*ROTATED, "algo=si", "optimizer.lr=0.05"],
    "ewc_adam": [*ROTATED, "algo=ewc", "optimizer=adam"],
    "derpp_batch_norm": [
        *ROTATED, "algo=derpp", "algo.memory_size=30", "backbone.batch_norm=true",
    ],
    "icarl": [
        "benchmark=split_digits", "benchmark.scenario=class", "benchmark.samples_per_task=85",
        "benchmark.classes_per_task=2", "backbone.width=12", "algo=icarl", "algo.memory_size=30",
    ],
    "kcl": [*ROTATED, "algo=kcl", "algo.coreset_per_class=2", "algo.num_bases=16"],
    "three_seeds": [*ROTATED, "algo=ewc", "seed=[0,1,2]"],
    "si_adam": [*ROTATED, "algo=si", "optimizer=adam"],
    "three_seeds_si": [*ROTATED, "algo=si", "optimizer.lr=0.05", "seed=[0,1,2]"],
}  # fmt: skip
STEP = 31
"""A step in the second epoch of the second task."""


class Stop(InterruptionCallback):
    """End the run in the middle of the second task, or at its end, as SIGTERM would."""

    def __init__(self, *, within_task: bool) -> None:
        super().__init__()
        self.within_task = within_task

    def on_after_chunk(self, algorithm: Any, chunk: Any) -> None:
        """Stop after the chunk that contains step STEP."""
        if self.within_task and algorithm.global_step >= STEP:
            self._requested = signal.SIGTERM
            super().on_after_chunk(algorithm, chunk)

    def on_after_validation(self, algorithm: Any) -> None:
        """Stop after the second task has been evaluated."""
        if not self.within_task and algorithm.task == 2 and algorithm.task_is_done:
            self._requested = signal.SIGTERM
            super().on_after_validation(algorithm)


def run_seeds_as_processes_do(config: dict, directory: Path, stop: Stop | None) -> None:
    """Write what `seeds_strategy=processes` writes; its worker processes cannot be stopped here."""
    first = build(config, 0, directory)
    results = Results.start(
        directory,
        name=first.names,
        config_hash=first.config_hash,
        measured_on=first.benchmark.evaluation_split,
        seeds=config["seed"],
    )
    recorded = runner.OmegaConf.to_yaml(runner.OmegaConf.create(runner.without_secrets(config)))
    (directory / "config.yaml").write_text(recorded, encoding="utf-8")
    for seed in config["seed"]:
        job = SeedJob(config=config, seed=seed, directory=results.seed_directory(seed))
        sending = SendingCallback(to=results.update)
        make = partial(runner._build_for_process, job)
        try:
            found = runner._fit(make, sending, stop or InterruptionCallback())
            results.update(found, completed=True)
        except KeyboardInterrupt:
            stop._requested = None
    results.finish("interrupted" if stop else "completed")


def run(config: dict, directory: Path, stop: Stop | None) -> None:
    """Run an experiment until it is stopped."""
    if isinstance(config["seed"], list) and config["backend"] == "torch":
        run_seeds_as_processes_do(config, directory, stop)
        return
    try:
        runner.run_experiment(config, directory, stop)
    except KeyboardInterrupt:
        assert stop is not None


def main(conf: Path, folder: Path) -> None:
    """Write every case on both backends."""
    for name, overrides in CASES.items():
        for backend in ("torch", "jax"):
            given = [*overrides, *COMMON, f"backend={backend}"]
            if name.startswith("three_seeds"):
                strategy = "vmap" if backend == "jax" else "processes"
                given.append(f"seeds_strategy={strategy}")
            (job,) = preflight.check(given, conf)
            place = folder / f"{name}-{backend}"
            for stopped in ("within_task", "after_task"):
                run(job.config, place / stopped, Stop(within_task=stopped == "within_task"))
            with tempfile.TemporaryDirectory() as scratch:
                whole = Path(scratch) / "run"
                run(job.config, whole, None)
                seeds = sorted((whole / "seeds").glob("*")) or [whole]
                for seed in seeds:
                    end = max((seed / "checkpoints").iterdir())
                    to = place / "ended" / (seed.name if seed != whole else "0")
                    shutil.copytree(end, to)
                    shutil.copy(seed / "metrics.jsonl", to)
            told = {"overrides": given, "config_hash": job.hash}
            (place / "command.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    for path in (*folder.rglob("*.lock"), *folder.rglob(".seqrun*")):
        path.unlink()
    packages = ("torch", "jax", "jaxlib", "flax", "optax", "numpy")
    made_by = {name: metadata.version(name) for name in packages}
    flags = next(
        x
        for x in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if x[:5] == "flags"
    )
    about = {"commit": "70036af", "versions": made_by, "python": platform.python_version()}
    about["processor"] = {"machine": platform.machine(), "flags": flags.split(":")[1].split()}
    (folder / "made_by.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
