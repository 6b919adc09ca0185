"""Run the reproductions that fit a machine, and keep what they measured: `make reproduce`.

`python -m seqrun.reproductions [--only PATTERN] [--machine cpu|gpu] [--backend torch|jax]
[--again]` runs every row of reproductions/ that is meant for the machine, on both backends: on a
CPU as many rows at once as there are cores, each with its seeds one after the other: five, then as
many more as their deviation asks for. The training without the row's method, its control, is run
too. Seeds that reproductions/results.json holds already, by the row's config hash, are kept, and a
run that was stopped continues. After every row results.json and RESULTS.md are written anew.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

from seqrun import CONF
from seqrun.checks import BACKENDS, BAD_INPUT, ConfigError, nearest
from seqrun.config.build import check_data, checked_experiment
from seqrun.config.compose import composed, composing, register
from seqrun.config.experiment import Experiment
from seqrun.config.trust import check_files
from seqrun.evaluation.verdict import FEWEST_SEEDS, MACHINES
from seqrun.records.results import RecordError, Results
from seqrun.reproductions.records import PAGE, HashOf, Metrics, Records, metrics_by_seed, next_seeds
from seqrun.reproductions.rows import FOLDER, Row, rows_of
from seqrun.system import num_cores

ROOT = CONF
"""Where the folder of reproductions is."""
COMMAND = (sys.executable, "-m", "seqrun")
INTERRUPTED = 130
"""Exit code after Ctrl-C or SIGTERM."""
FIRST_SEEDS = list(range(FEWEST_SEEDS))


@dataclass(frozen=True)
class RowRun:
    """A row on a backend, to be run.

    Attributes:
        row, backend: what.
        directory: of the run with the first seeds, named after the experiment so that a changed
            protocol starts anew; further seeds do not rename it.
        measured: seeds that were measured before: seed -> metrics.
        hash_of: the row's config hash.
    """

    row: Row
    backend: str
    directory: Path
    measured: Mapping[int, Metrics]
    hash_of: HashOf

    @property
    def log(self) -> Path:
        """File for the run's output."""
        return self.directory.with_suffix(".log")

    def directory_of(self, seeds: Sequence[int]) -> Path:
        """Return the directory of the run with these seeds."""
        if list(seeds) == FIRST_SEEDS:
            return self.directory
        return self.directory.with_name(f"{self.directory.name}-{seeds[0]}-{seeds[-1]}")


@dataclass
class Runner:
    """Run rows, each in its own process, and record each when it ends.

    Args:
        records: the records to add to.
        number: number of runs, for progress messages.
        overrides: overrides of every run.
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
        """Run a row, record its results and print its verdict."""
        finished = self._all_seeds(run)
        with self._lock:
            if self._is_ending and finished is None:
                return
            outcome = f"failed, see {run.log}"
            if finished is not None:
                outcome = self.records.add(
                    run.row, run.backend, finished, run.measured, run.hash_of
                )
                outcome = "control measured" if run.row.overrides else outcome
            else:
                self.failed += 1
            self.done += 1
            seconds = time.perf_counter() - self._started
            name = f"{self.done}/{self.number} {run.row.name} {run.backend}"
            sys.stdout.write(f"{name}: {outcome} ({seconds:.0f} s)\n")
            sys.stdout.flush()

    def _all_seeds(self, run: RowRun) -> list[Results] | None:
        """Return the row's runs, until it has the seeds that it needs; None = one failed."""
        measured, finished = dict(run.measured), []
        while seeds := next_seeds(run.row.expected, measured):
            results = self._run(run, seeds)
            if results is None or results.verdict is None or list(results.seeds) != seeds:
                return None
            finished.append(results)
            measured |= metrics_by_seed(results)
        return finished

    def _run(self, run: RowRun, seeds: Sequence[int]) -> Results | None:
        run.log.parent.mkdir(parents=True, exist_ok=True)
        directory = run.directory_of(seeds)
        command = [*COMMAND, f"reproductions={run.row.file}"]
        command += [f"backend={run.backend}", *run.row.overrides, seed_override(seeds)]
        command += [f"hydra.run.dir={directory}", *self.overrides]
        with open(run.log, "a", encoding="utf-8") as output:
            with self._lock:
                if self._is_ending:
                    return None
                # In its own session, so that Ctrl-C reaches it only once, through `end`.
                process = subprocess.Popen(
                    command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
                )
                self._running.append(process)
            code = process.wait()
        try:
            return Results.read(directory) if code == 0 else None
        except RecordError:
            return None

    def end(self) -> None:
        """Start no more rows, and let the running ones save a checkpoint and end."""
        with self._lock:
            self._is_ending = True
            for process in self._running:
                if process.poll() is None:
                    process.terminate()


def main(argv: Sequence[str]) -> int:
    """Run the requested rows; return 0, or 1 if a row failed to run, whatever the verdicts."""
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
    parser.add_argument("--machine", default="cpu", choices=MACHINES, help="rows for this machine")
    parser.add_argument("--backend", choices=BACKENDS, help="run on this backend only")
    text = "rows at once; default: one per core, 1 on a GPU"
    parser.add_argument("--jobs", type=_jobs, help=text)
    parser.add_argument("--again", action="store_true", help="rerun measured rows from the start")
    parser.add_argument("--page", action="store_true", help="write RESULTS.md and run nothing")
    return parser.parse_args(argv)


def _jobs(text: str) -> int:
    """Parse the number of rows to run at once.

    Raises:
        argparse.ArgumentTypeError: the text is not an integer >= 1.
    """
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: must be an integer >= 1")
    return int(text)


def _main(args: argparse.Namespace) -> int:
    records = Records(ROOT / FOLDER)
    if args.page:
        records.write_page()
        return 0
    runs, wanted = _left(args, records)
    if records.has_outdated:
        records.write()
    sys.stdout.write(f"{wanted - len(runs)} of {wanted} measured already\n")
    jobs = args.jobs or (num_cores() if args.machine == "cpu" else 1)
    jobs = max(1, min(jobs, len(runs)))
    # Running seeds in parallel leaves cores idle at each row's end, so only a single job does it.
    overrides = [f"seeds_strategy={'auto' if jobs == 1 else 'sequential'}"]
    runner = Runner(records, len(runs), overrides + ["resume=never"] * args.again)
    _run_all(runs, runner, jobs)
    sys.stdout.write(f"{FOLDER}/{PAGE} is written; {runner.failed} failed to run\n")
    return 1 if runner.failed else 0


def _left(args: argparse.Namespace, records: Records) -> tuple[list[RowRun], int]:
    """Return the requested runs that are not measured yet, and the number of requested runs.

    Raises:
        ConfigError: no row matches, or a row is invalid.
    """
    matching = [row for row in rows_of(records.folder) if fnmatch(row.name, args.only)]
    rows = [row for row in matching if row.expected.machine == args.machine]
    if not matching:
        names = [row.name for row in rows_of(records.folder)]
        allowed = f"must be <paper>/<row>, with * for any text{nearest(args.only, names)}"
        raise ConfigError(f"--only={args.only!r}: {allowed}; make list names all")
    if not rows:
        other = " ".join(f"--machine {m}" for m in MACHINES if m != args.machine)
        raise ConfigError(f"--only={args.only!r}: no such row is for a {args.machine}: {other}")
    both = [
        each
        for row in rows
        for each in (row, row.control)
        if each and (each is row or each.overrides)
    ]
    wanted = [(row, b) for row in both for b in ([args.backend] if args.backend else BACKENDS)]
    runs = []
    for row, backend in wanted:
        hash_of = partial(_hash, row, backend)
        directory = Path("runs", FOLDER, row.file, f"{backend}-{hash_of(FIRST_SEEDS)}")
        measured = {} if args.again else records.measured(row, backend, hash_of)
        if next_seeds(row.expected, measured):
            runs.append(RowRun(row, backend, directory, measured, hash_of))
    return runs, len(wanted)


def _hash(row: Row, backend: str, seeds: Sequence[int]) -> str:
    """Return the config hash of a row with these seeds."""
    command = [f"reproductions={row.file}", f"backend={backend}", *row.overrides]
    return checked_row([*command, seed_override(seeds)]).hash


def seed_override(seeds: Sequence[int]) -> str:
    """Return the override of a command with these seeds."""
    return f"seed=[{','.join(map(str, seeds))}]"


def checked_row(overrides: list[str]) -> Experiment:
    """Return the experiment of a row, checked.

    Raises:
        ConfigError: it is invalid, or its data are missing.
    """
    register()
    with composing(CONF):
        cfg = composed("config", overrides)
        check_files(cfg, "config", overrides)
        experiment, first = checked_experiment(cfg)
    check_data(experiment, first)
    return experiment


def _run_all(runs: Sequence[RowRun], runner: Runner, jobs: int) -> None:
    """Run the rows, `jobs` at once, and leave no process running, however it ends."""
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
