"""The record of a run directory: results.json and accuracy_matrix.csv.

How a runner uses it::

    results = Results.start(
        directory, name={"algo": "ewc", ...}, config_hash="...", measured_on="test", seeds=[0, 1]
    )
    algorithm.callbacks = [*callbacks, RecordCallback(results=results)]  # seqrun.callbacks
    results.update(algorithm.fit())  # one seed's RunRecord; an earlier one of that seed is replaced
    results.finish("completed")  # or "failed" / "interrupted", with error=exception

Each of `start`, `update` and `finish` rewrites the files. `Results.read(directory)` gets a record
back, checked; to continue it, call `reopen()`. With several seeds the files at the top aggregate,
and `seeds/<seed>/accuracy_matrix.csv` holds each one's matrix.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, TypedDict

import msgspec
import numpy as np

import seqrun
from seqrun.checks import one_of
from seqrun.evaluation.metrics import UNDEFINED_BY_CLASS, mean_matrix, run_metrics, summarise
from seqrun.files import json_value, matrix_to_csv, write_atomically, write_json
from seqrun.records.progress import Progress

SCHEMA = 1
STATUSES = ("running", "completed", "failed", "interrupted")
MEASURED_ON = ("test", "validation")
FILE = "results.json"
MATRIX_FILE = "accuracy_matrix.csv"
NAMES = ("algo", "benchmark", "backbone", "backend")


class RecordError(ValueError):
    """A results.json that is missing, unreadable or not of this schema; the message says where."""


@dataclass(kw_only=True, eq=False)
class RunRecord:
    """What one seed measured: an entry of `runs` in results.json.

    Attributes:
        seed: the run's seed.
        accuracy_matrix: (T+1, T) float64, fractions in [0, 1]; row 0 = untrained; NaN = not
            measured.
        accuracy_matrix_task_aware: the same with the task given at test, or None.
        test_sizes: samples that each task's accuracy was measured on, T integers, or None.
        train_loss: {"final", "per_task"}: mean task loss of the last epoch, of each task's last.
        timing: setup_seconds, compile_seconds, train_seconds, eval_seconds, steps and
            steps_per_second.
        cost: samples_seen, gradient_steps, memory_bytes, peak_rss_bytes.
        execution: strategy, num_threads, chunk_steps, compiled (kept once, for all runs).
        device: the kind of device that it ran on (kept once, in the environment).
        completed: whether the whole stream was trained on.
    """

    seed: int
    accuracy_matrix: np.ndarray
    accuracy_matrix_task_aware: np.ndarray | None = None
    test_sizes: Sequence[int] | None = None
    train_loss: Mapping[str, Any] = field(default_factory=dict)
    timing: Mapping[str, Any] = field(default_factory=dict)
    cost: Mapping[str, Any] = field(default_factory=dict)
    execution: Mapping[str, Any] = field(default_factory=dict)
    device: str | None = None
    completed: bool = False

    @classmethod
    def of(
        cls,
        progress: Progress,
        *,
        seed: int,
        test_sizes: Sequence[int] | None,
        execution: Mapping[str, Any],
        device: str | None,
    ) -> RunRecord:
        """Return the record of a run as it stands, during the run or after it.

        Args:
            progress: what it has counted and measured.
            seed, test_sizes, execution, device: as in the attributes.
        """
        steps, seconds = progress.global_step, progress.timing["train_seconds"]
        aware = progress.accuracy_matrix_task_aware
        return cls(
            seed=seed,
            accuracy_matrix=np.array(progress.accuracy_matrix, np.float64),
            accuracy_matrix_task_aware=None if aware is None else np.array(aware, np.float64),
            test_sizes=test_sizes,
            train_loss={"final": progress.final_loss, "per_task": list(progress.task_losses)},
            timing={
                **progress.timing,
                "steps": steps,
                "steps_per_second": steps / seconds if seconds > 0 else None,
            },
            cost={
                "samples_seen": progress.samples_seen,
                "gradient_steps": progress.gradient_steps,
                "memory_bytes": progress.memory_bytes,
                "peak_rss_bytes": peak_rss_bytes(),
            },
            execution=dict(execution),
            device=device,
        )

    @property
    def metrics(self) -> dict[str, float | None]:
        """Every metric of the matrix; None = undefined, or not measured yet."""
        return run_metrics(self.accuracy_matrix, self.accuracy_matrix_task_aware, self.test_sizes)

    def as_dict(self) -> dict[str, Any]:
        """Return the entry of `runs` as plain data (NaN is None)."""
        is_class = self.accuracy_matrix_task_aware is not None
        return json_value(
            {
                "seed": self.seed,
                "completed": self.completed,
                "accuracy_matrix": self.accuracy_matrix,
                "accuracy_matrix_task_aware": self.accuracy_matrix_task_aware,
                "test_sizes": self.test_sizes,
                "metrics": self.metrics,
                **({"undefined": UNDEFINED_BY_CLASS} if is_class else {}),
                "train_loss": self.train_loss,
                "timing": self.timing,
                "cost": self.cost,
            }
        )


@dataclass(kw_only=True, eq=False)
class Results:
    """The record of a run directory, over all its seeds.

    Args:
        directory: the run directory.
        name: {"algo", "benchmark", "backbone", "backend"} -> name.
        config_hash: of whatever changes the numbers.
        measured_on: "test" or "validation".
        selected_on: "test" or "validation": what a callback chose the ends of tasks by; None = no
            callback does.
        seeds: the seeds that the directory is to hold.
        status: "running", "completed", "failed" or "interrupted".
        verdict: of a reproduction, plain data, or None.
        error: {"type", "message", "traceback"} of a failure, or None.
        execution: strategy, num_threads, chunk_steps, compiled.
        runs: one record per seed, in the order of `seeds`.
        environment: versions, commit and machine.
        numerics: part's key -> version of its numbers, of those above 1.
    """

    directory: Path
    name: Mapping[str, str]
    config_hash: str
    measured_on: str
    seeds: Sequence[int]
    status: str = "running"
    verdict: Mapping[str, Any] | None = None
    error: Mapping[str, Any] | None = None
    execution: Mapping[str, Any] = field(default_factory=dict)
    runs: list[RunRecord] = field(default_factory=list)
    environment: Mapping[str, Any] = field(default_factory=dict)
    numerics: Mapping[str, int] = field(default_factory=dict)
    selected_on: str | None = None

    @classmethod
    def start(
        cls,
        directory: str | Path,
        *,
        name: Mapping[str, str],
        config_hash: str,
        measured_on: str,
        seeds: Sequence[int],
        numerics: Mapping[str, int] | None = None,
        selected_on: str | None = None,
    ) -> Results:
        """Begin the record of a new run and write it with status "running"."""
        results = cls(
            directory=Path(directory),
            name={key: name[key] for key in NAMES},
            config_hash=config_hash,
            measured_on=measured_on,
            seeds=list(seeds),
            environment=environment(),
            numerics=dict(numerics or {}),
            selected_on=selected_on,
        )
        results.write()
        return results

    def has_completed(self, seed: int) -> bool:
        """Return whether a seed's run is done."""
        return any(run.seed == seed and run.completed for run in self.runs)

    def update(self, run: RunRecord, *, completed: bool = False) -> None:
        """Put in one seed's record, in place of an earlier one of that seed, and write."""
        run.completed = completed
        self.runs = [r for r in self.runs if r.seed != run.seed] + [run]
        order = {seed: place for place, seed in enumerate(self.seeds)}
        self.runs.sort(key=lambda r: order.get(r.seed, len(order)))
        if run.execution:
            self.execution = {**run.execution}
        if run.device is not None:
            self.environment = {**self.environment, "device": run.device}
        self.write()

    def finish(
        self,
        status: str,
        *,
        error: BaseException | None = None,
        verdict: Mapping[str, Any] | None = None,
    ) -> None:
        """End the run with `status`, what went wrong, the verdict if any, and write."""
        self.status = status
        self.error = None if error is None else describe_error(error)
        self.verdict = verdict
        self.write()

    def reopen(self) -> None:
        """Continue a record that was read: status "running", this process's environment."""
        self.status, self.error = "running", None
        self.environment = {**environment(), "device": self.environment.get("device")}
        self.write()

    @property
    def summary(self) -> dict[str, dict[str, Any]]:
        """Mean, std, 95 % interval and count of every metric over the seeds."""
        return summarise([run.metrics for run in self.runs])

    def mean_of(self, metric: str) -> float | None:
        """Return a metric's mean over the seeds; None if it is not defined or not measured."""
        return self.summary.get(metric, {}).get("mean")

    def optimized(self, config: Mapping[str, Any]) -> Any:
        """Return the mean of the experiment's `optimized_metric`; a list if it names several."""
        metric = config["optimized_metric"]
        return self.mean_of(metric) if isinstance(metric, str) else [*map(self.mean_of, metric)]

    @property
    def mean_matrix(self) -> np.ndarray:
        """(T+1, T) float64: the accuracy matrix averaged over the seeds that measured a cell."""
        return mean_matrix([run.accuracy_matrix for run in self.runs])

    def as_dict(self) -> dict[str, Any]:
        """Return the content of results.json."""
        numerics = {"numerics": dict(self.numerics)} if self.numerics else {}
        selected_on = {"selected_on": self.selected_on} if self.selected_on else {}
        return {
            "schema": SCHEMA,
            "status": self.status,
            "name": dict(self.name),
            "config_hash": self.config_hash,
            **numerics,
            "measured_on": self.measured_on,
            **selected_on,
            "seeds": list(self.seeds),
            "verdict": json_value(self.verdict),
            "error": json_value(self.error),
            "execution": json_value(self.execution),
            "runs": [run.as_dict() for run in self.runs],
            "summary": json_value(self.summary),
            "environment": json_value(self.environment),
        }

    def write(self) -> None:
        """Write results.json and accuracy_matrix.csv (and each seed's), each atomically.

        results.json goes last: once it tells of a row, the other files hold it.
        """
        if self.runs:
            write_atomically(self.directory / MATRIX_FILE, matrix_to_csv(self.mean_matrix))
        if len(self.seeds) > 1:
            for run in self.runs:
                path = self.seed_directory(run.seed) / MATRIX_FILE
                write_atomically(path, matrix_to_csv(run.accuracy_matrix))
        write_json(self.directory / FILE, self.as_dict())

    def seed_directory(self, seed: int) -> Path:
        """Return the directory of one seed's files: the run directory itself if it is the only."""
        return self.directory / "seeds" / str(seed) if len(self.seeds) > 1 else self.directory

    @classmethod
    def read(cls, directory: str | Path) -> Results:
        """Read a run directory's results.json and check it against the schema.

        Raises:
            RecordError: no such file, not JSON, or not of this schema; the message names the key.
        """
        path = Path(directory) / FILE
        try:
            stored = msgspec.json.decode(path.read_bytes(), type=_Stored, dec_hook=_matrix)
        except (OSError, ValueError, RecursionError) as error:
            raise RecordError(f"{path}: cannot be read: {error}") from error
        content = msgspec.structs.asdict(stored)
        del content["schema"]
        runs = [RunRecord(**run.measured()) for run in stored.runs]
        return cls(directory=Path(directory), **{**content, "runs": runs})


# ---- the file, as it is checked when it is read

Number = int | float | None


class _Name(TypedDict):
    algo: str
    benchmark: str
    backbone: str
    backend: str


class _Losses(TypedDict, total=False):
    final: Number
    per_task: list[Number]


class _StoredRun(msgspec.Struct, kw_only=True):
    """An entry of `runs`."""

    seed: int
    completed: bool = False
    accuracy_matrix: np.ndarray
    accuracy_matrix_task_aware: np.ndarray | None = None
    test_sizes: list[Annotated[int, msgspec.Meta(gt=0)]] | None = None
    metrics: dict[str, Any]
    train_loss: _Losses
    timing: dict[str, Number]
    cost: dict[str, Number]

    def __post_init__(self) -> None:
        sizes, num_tasks = self.test_sizes, self.accuracy_matrix.shape[1]
        if sizes is not None and len(sizes) != num_tasks:
            raise ValueError(f"test_sizes={sizes}: must be null or one integer per task")

    def measured(self) -> dict[str, Any]:
        """Return what a RunRecord keeps: metrics follow from the matrices."""
        return {k: v for k, v in msgspec.structs.asdict(self).items() if k != "metrics"}


class _Stored(msgspec.Struct, kw_only=True):
    """results.json."""

    schema: int
    status: str
    name: _Name
    config_hash: str
    numerics: dict[str, int] = {}
    measured_on: str
    selected_on: str | None = None
    seeds: list[int] | None = None
    verdict: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    execution: dict[str, Any]
    runs: list[_StoredRun]
    environment: dict[str, Any]

    def __post_init__(self) -> None:
        one_of("schema", self.schema, (SCHEMA,))
        one_of("status", self.status, STATUSES)
        one_of("measured_on", self.measured_on, MEASURED_ON)
        one_of("selected_on", self.selected_on, (None, *MEASURED_ON))
        seeds = [run.seed for run in self.runs]
        if len(set(seeds)) != len(seeds):
            raise ValueError(f"runs: a seed occurs twice in {seeds}")
        if self.seeds is None:
            self.seeds = seeds
        if not set(seeds) <= set(self.seeds):
            raise ValueError(f"seeds={self.seeds}: must hold those of the runs, {seeds}")


def _matrix(kind: type, rows: Any) -> np.ndarray:
    """Return (T+1, T) float64 from lists with null for NaN."""
    try:
        matrix = np.array(rows, np.float64)  # None becomes NaN
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError("must be rows of numbers or null") from error
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] + 1 or not matrix.shape[1]:
        raise ValueError(f"must be (T+1) x T, not {' x '.join(map(str, matrix.shape))}")
    if ((matrix < 0) | (matrix > 1)).any():
        raise ValueError("must hold fractions in [0, 1]")
    return matrix


def environment() -> dict[str, Any]:
    """Return versions, commit and machine; no framework is imported to ask for its version."""
    commit, dirty = _git_commit(Path(seqrun.__file__).parent)
    return {
        "python": platform.python_version(),
        "torch": _version("torch"),
        "jax": _version("jax"),
        "numpy": np.__version__,
        "seqrun": seqrun.__version__,
        "git_commit": commit,
        "git_dirty": dirty,
        "device": None,
        "host_cpus": os.cpu_count(),
        "platform": platform.platform(),
    }


def describe_error(error: BaseException) -> dict[str, str]:
    """Return an exception as {"type", "message", "traceback"}."""
    return {
        "type": type(error).__name__,
        "message": str(error),
        "traceback": "".join(traceback.format_exception(error)),
    }


def peak_rss_bytes() -> int | None:
    """Return the largest resident memory of this process so far; None where it can't be asked."""
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_commit(package: Path) -> tuple[str | None, bool | None]:
    """Return the commit of the checkout that `package` is tracked in, and whether it was changed.

    (None, None) when there is no git or the package is not tracked: a package installed into a
    virtual environment inside some other project's checkout must not claim that commit.
    """
    outside = {k: v for k, v in os.environ.items() if k not in ("GIT_DIR", "GIT_WORK_TREE")}
    quiet = {**outside, "GIT_OPTIONAL_LOCKS": "0"}

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(package), *arguments],
            env=quiet,
            capture_output=True,
            encoding="utf-8",
            timeout=10,
            check=True,
            stdin=subprocess.DEVNULL,
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        described = git("describe", "--always", "--abbrev=40", "--exclude=*", "--dirty")
    except (OSError, subprocess.SubprocessError):
        return None, None
    return described.removesuffix("-dirty"), described.endswith("-dirty")
