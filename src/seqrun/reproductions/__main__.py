"""Run the reproductions that fit a machine, and keep what they measured: `make reproduce`.

`python -m seqrun.reproductions [--only PATTERN] [--machine cpu|gpu] [--backend torch|jax]
[--again]` runs every row of reproductions/ that is meant for the machine, on both backends: on a
CPU as many rows at once as there are cores, each with its seeds one after the other. A row that
reproductions/results.json holds already, by its config hash, is left out, and a run that was
stopped continues. After every row results.json and RESULTS.md are written anew.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from seqrun.checks import BAD_INPUT, ConfigError, nearest
from seqrun.config.build import check_data, checked_experiment
from seqrun.config.compose import composed, composing, register
from seqrun.config.experiment import Experiment
from seqrun.config.trust import check_files
from seqrun.evaluation.verdict import MACHINES
from seqrun.records.results import RecordError, Results
from seqrun.reproductions.records import BACKENDS, FOLDER, PAGE, Records, Row, rows_of
from seqrun.system import num_cores

ROOT = Path(__file__).parents[3]
INTERRUPTED = 130
"""Exit code."""


@dataclass(frozen=True)
class RowRun:
    """A row on a backend, to be run.

    Attributes:
        row, backend: what.
        directory: of the run, named after the experiment so that a changed protocol starts anew.
    """

    row: Row
    backend: str
    directory: Path

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return self.directory.with_suffix(".log")


@dataclass
class Runner:
    """Run rows, each in a process of its own, and keep each as it ends.

    Args:
        records: where to.
        number: of rows that are to be run.
        overrides: of every run.
    """

    records: Records
    number: int
    overrides: Sequence[str]
    done: int = 0
    failed: int = 0
    _started: float = field(default_factory=time.perf_counter)
    _is_ending: bool = False
    _running: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, run: RowRun) -> None:
        """Run a row, keep what it measured and tell of it."""
        results = self._run(run)
        with self._lock:
            if self._is_ending and results is None:
                return
            told = f"failed, see {run.log}"
            if results is not None and results.verdict is not None:
                told = self.records.add(run.row, run.backend, results)
            else:
                self.failed += 1
            self.done += 1
            seconds = time.perf_counter() - self._started
            name = f"{self.done}/{self.number} {run.row.name} {run.backend}"
            sys.stdout.write(f"{name}: {told} ({seconds:.0f} s)\n")
            sys.stdout.flush()

    def _run(self, run: RowRun) -> Results | None:
        run.log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(ROOT / "run.py"), f"reproductions={run.row.name}"]
        command += [f"backend={run.backend}", f"hydra.run.dir={run.directory}", *self.overrides]
        with open(run.log, "w", encoding="utf-8") as output:
            with self._lock:
                if self._is_ending:
                    return None
                # Of a session of its own: Ctrl-C reaches it once, by `end`.
                process = subprocess.Popen(
                    command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
                )
                self._running.append(process)
            code = process.wait()
        try:
            return Results.read(run.directory) if code == 0 else None
        except RecordError:
            return None

    def end(self) -> None:
        """Begin nothing more, and let all that run end with a checkpoint."""
        with self._lock:
            self._is_ending = True
            for process in self._running:
                if process.poll() is None:
                    process.terminate()


def main(argv: Sequence[str]) -> int:
    """Run what is asked for; return 0, or 1 if a row failed to run, whatever its verdict."""
    try:
        return _main(_arguments(argv))
    except (ConfigError, RecordError) as error:
        sys.stderr.write(f"error: {error}\n")
        return BAD_INPUT
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command continues\n")
        return INTERRUPTED


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("make reproduce", description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="*", help="rows, such as 'hsu2018/*'")
    parser.add_argument("--machine", default="cpu", choices=MACHINES, help="rows meant for it")
    parser.add_argument("--backend", choices=BACKENDS, help="one alone")
    told = "rows at once; default: one per core, 1 on a GPU"
    parser.add_argument("--jobs", type=_jobs, help=told)
    parser.add_argument("--again", action="store_true", help="measured ones too, from the start")
    parser.add_argument("--page", action="store_true", help="write RESULTS.md and run nothing")
    return parser.parse_args(argv)


def _jobs(text: str) -> int:
    """Return a number of rows at once.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: must be an integer >= 1")
    return int(text)


def _main(asked: argparse.Namespace) -> int:
    records = Records(ROOT / FOLDER)
    if asked.page:
        records.write_page()
        return 0
    runs, wanted = _left(asked, records)
    sys.stdout.write(f"{wanted - len(runs)} of {wanted} measured already\n")
    jobs = asked.jobs or (num_cores() if asked.machine == "cpu" else 1)
    jobs = max(1, min(jobs, len(runs)))
    # Seeds side by side leave cores idle at each row's end; only a row that is alone has them so.
    overrides = [f"seeds_strategy={'auto' if jobs == 1 else 'sequential'}"]
    runner = Runner(records, len(runs), overrides + ["resume=never"] * asked.again)
    _run_all(runs, runner, jobs)
    sys.stdout.write(f"{FOLDER}/{PAGE} is written; {runner.failed} failed to run\n")
    return 1 if runner.failed else 0


def _left(asked: argparse.Namespace, records: Records) -> tuple[list[RowRun], int]:
    """Return what is asked for and not measured yet, and how much is asked for.

    Raises:
        ConfigError: no row matches, or one is not in order.
    """
    matching = [row for row in rows_of(records.folder) if fnmatch(row.name, asked.only)]
    rows = [row for row in matching if row.expected.machine == asked.machine]
    if not matching:
        names = [row.name for row in rows_of(records.folder)]
        told = f"must be <paper>/<row>, with * for any text{nearest(asked.only, names)}"
        raise ConfigError(f"--only={asked.only!r}: {told}; make list names all")
    if not rows:
        other = " ".join(f"--machine {m}" for m in MACHINES if m != asked.machine)
        raise ConfigError(f"--only={asked.only!r}: no such row is for a {asked.machine}: {other}")
    wanted = [(row, b) for row in rows for b in ([asked.backend] if asked.backend else BACKENDS)]
    runs = []
    for row, backend in wanted:
        experiment = checked_row([f"reproductions={row.name}", f"backend={backend}"])
        if asked.again or not records.has(row, backend, experiment.hash):
            directory = Path("runs", FOLDER, row.name, f"{backend}-{experiment.hash}")
            runs.append(RowRun(row, backend, directory))
    return runs, len(wanted)


def checked_row(overrides: list[str]) -> Experiment:
    """Return the experiment of a row, checked.

    Raises:
        ConfigError: it is not in order, or its data are missing.
    """
    register()
    with composing(ROOT / "conf"):
        cfg = composed("config", overrides)
        check_files(cfg, "config", overrides, overrides)
        experiment, first = checked_experiment(cfg)
    check_data(experiment, first)
    return experiment


def _run_all(runs: Sequence[RowRun], runner: Runner, jobs: int) -> None:
    """Run the rows, `jobs` at once; whatever ends it, nothing is left running."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    pool = ThreadPoolExecutor(jobs)
    try:
        for future in as_completed([pool.submit(runner, run) for run in runs]):
            future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        runner.end()
        pool.shutdown()
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
