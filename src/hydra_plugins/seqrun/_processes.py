"""Jobs of a multirun in several processes of one machine.

Every process is a pool of one worker, driven by a thread: a pool whose worker is killed is broken
for good, so none is shared, and a new one takes its place.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from pathlib import Path

from seqrun.callbacks import Interrupted, InterruptionCallback
from seqrun.sweep import Outcome, SweepJob, environment, progress, stopped

ONE_THREAD = {
    name: "1"
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC")
}
"""What numerical libraries read when a process starts; the last is XLA's."""
LOGS = "logs"
"""Folder beside the jobs' directories with what each of them printed."""


def run_in_processes(
    jobs: Sequence[SweepJob], *, processes: int, retries: int
) -> Sequence[Outcome]:
    """Run the jobs in several processes and return how each ended, in their order.

    Args:
        jobs: at least one.
        processes: that run at a time.
        retries: times that a job is tried again when its process was killed.

    Raises:
        Interrupted: a signal came; the jobs that ran have saved a checkpoint.
    """
    crew = _Crew(jobs, retries)
    threads = [threading.Thread(target=crew.work, daemon=True) for _ in range(processes)]
    with environment(ONE_THREAD), InterruptionCallback().listening():
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.2)  # so that signals are heard
        except Interrupted:
            crew.stop()
            for thread in threads:
                thread.join()
            stopped(len(crew.outcomes), len(jobs))
            raise
    return [crew.outcomes[job.number] for job in jobs]


class _Crew:
    """The jobs that wait, those that ended, and the workers; shared by the threads.

    Attributes:
        outcomes: job number -> how it ended.
    """

    def __init__(self, jobs: Sequence[SweepJob], retries: int) -> None:
        self.outcomes: dict[int, Outcome] = {}
        self._total, self._tries = len(jobs), retries + 1
        self._waiting: queue.SimpleQueue[SweepJob] = queue.SimpleQueue()
        for job in jobs:
            self._waiting.put(job)
        self._lock = threading.Lock()
        self._is_stopped = False
        self._workers: set[int] = set()

    def work(self) -> None:
        """Run jobs in a process of its own until none waits."""
        pool = None
        try:
            while not self._is_stopped:
                job = self._waiting.get_nowait()
                for tries_left in reversed(range(self._tries)):
                    try:
                        pool = pool or self._new_pool()
                        outcome = pool.submit(_run, job).result()
                        break
                    except BrokenProcessPool:
                        pool = None
                        if self._is_stopped:
                            return
                        outcome = _killed(job)
                        if tries_left:
                            sys.stderr.write(f"{job.name}: its process was killed; again\n")
                if outcome is None:  # it was interrupted
                    return
                with self._lock:
                    self.outcomes[job.number] = outcome
                    progress(job, outcome, len(self.outcomes), self._total)
        except queue.Empty:
            pass
        finally:
            if pool:
                pool.shutdown()

    def stop(self) -> None:
        """Start no further job; let those that run save a checkpoint and end."""
        with self._lock:
            self._is_stopped = True
            for worker in self._workers:
                with suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGTERM)

    def _new_pool(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")  # threads and frameworks do not survive fork
        pool = ProcessPoolExecutor(1, mp_context=context, initializer=_begin)
        worker = pool.submit(os.getpid).result()
        with self._lock:
            self._workers.add(worker)
            if self._is_stopped:
                os.kill(worker, signal.SIGTERM)
        return pool


def _begin() -> None:
    """Make this process end with its parent, which alone hears Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)  # at once: what takes the jobs up again must find their directories free


def _run(job: SweepJob) -> Outcome | None:
    """Run a job in this process; None = a signal ended it."""
    from seqrun import runner

    with environment(job.environment), _output_in(_log(job)):
        interruption = InterruptionCallback()
        try:
            with interruption.listening():
                return runner.run_job(job, interruption)
        except KeyboardInterrupt:
            return None


def _killed(job: SweepJob) -> Outcome:
    error = f"its process was killed, out of memory perhaps; see {_log(job)}"
    return Outcome(
        overrides=job.overrides, directory=job.directory, status="failed", error=error
    )


def _log(job: SweepJob) -> Path:
    return job.directory.parent / LOGS / f"{job.directory.name}.log"


@contextmanager
def _output_in(path: Path) -> Iterator[None]:
    """Append what this process prints to a file; several at once would garble a terminal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = [os.dup(number) for number in (1, 2)]
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.write(descriptor, f"--- {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
    try:
        for number in (1, 2):
            os.dup2(descriptor, number)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, old in zip((1, 2), before, strict=True):
            os.dup2(old, number)
            os.close(old)
        os.close(descriptor)
