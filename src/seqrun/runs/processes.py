"""Work in several processes of one machine, with one thread each unless a run sets another number.

Every process is an executor of one worker, driven by a thread: an executor whose worker is killed
is broken for good, so none is shared, and a new one takes its place.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from hydra.core.utils import env_override

from seqrun.callbacks import Interrupted, InterruptionCallback
from seqrun.runs.exit import exit_process

ONE_THREAD = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC"), "1"),
    "OMP_WAIT_POLICY": "PASSIVE",
}
"""What numerical libraries read when a process starts; NPROC is XLA's.

An engine sets its own number, the same in any process, which may be larger. Threads that wait must
then leave the cores to the other processes.
"""

_updates: Any = None
"""In a worker: the queue on which `send` puts updates for the parent."""


class Killed:
    """Stands for the result of work whose process was killed."""


def run_in_processes(
    items: Sequence[Any],
    work: Callable[[Any], Any],
    on_end: Callable[[Any, Any], None],
    *,
    processes: int,
    retries: int = 0,
    on_retry: Callable[[Any], None] = lambda item: None,
    on_update: Callable[[Any], None] | None = None,
) -> None:
    """Call `work` with every item, in several processes.

    Args:
        items: picklable objects.
        work: a module-level function that returns a picklable result, or None if a signal ended it.
        on_end: called with each item and its result, or Killed; one call at a time.
        processes: number of processes, >= 1.
        retries: how often an item is retried if its process was killed.
        on_retry: called with an item before it is retried.
        on_update: called with each update that a worker passes to `send`; one call at a time.

    Raises:
        Interrupted: a signal arrived, and all workers have ended.
    """
    context = multiprocessing.get_context("spawn")  # threads and frameworks do not survive fork
    updates = context.SimpleQueue() if on_update else None
    pool = WorkerPool(items, work, on_end, retries, on_retry, context, updates)
    threads = [threading.Thread(target=pool.work, daemon=True) for _ in range(processes)]
    with env_override(ONE_THREAD), InterruptionCallback().listening():
        try:
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                threads[0].join(0.1) if threads[0].is_alive() else time.sleep(0.1)
                while updates is not None and on_update is not None and not updates.empty():
                    with pool.lock:
                        on_update(updates.get())
        except Interrupted:
            pool.stop()
            for thread in threads:
                thread.join()
            raise
    if pool.error is not None:
        raise pool.error


def send(update: Any) -> None:
    """Send an update to the parent process; called in a worker."""
    _updates.put(update)


class WorkerPool:
    """The waiting items and the worker processes, shared by the threads that drive the workers."""

    def __init__(
        self,
        items: Sequence[Any],
        work: Callable[[Any], Any],
        on_end: Callable[[Any, Any], None],
        retries: int,
        on_retry: Callable[[Any], None],
        context: Any,
        updates: Any,
    ) -> None:
        self.lock = threading.Lock()
        self.error: BaseException | None = None
        self._work, self._on_end, self._on_retry = work, on_end, on_retry
        self._context, self._updates = context, updates
        self._tries = retries + 1
        self._waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for item in items:
            self._waiting.put(item)
        self._is_stopped = False
        self._workers: set[int] = set()

    def work(self) -> None:
        """Work on items in one worker process until no item is waiting."""
        worker = None
        try:
            while not self._is_stopped:
                item = self._waiting.get_nowait()
                for tries_left in reversed(range(self._tries)):
                    try:
                        worker = worker or self._new_worker()
                        result = worker.submit(self._work, item).result()
                        break
                    except BrokenProcessPool:
                        worker = None
                        if self._is_stopped:
                            return
                        result = Killed()
                        if tries_left:
                            self._on_retry(item)
                if result is None:  # it was interrupted
                    return
                with self.lock:
                    self._on_end(item, result)
        except queue.Empty:
            pass
        except BaseException as error:  # the main thread raises it again
            self.error = error
        finally:
            if worker:
                worker.shutdown()

    def stop(self) -> None:
        """Start no more items; let running workers save a checkpoint and end."""
        with self.lock:
            self._is_stopped = True
            for number in self._workers:
                _terminate(number)

    def _new_worker(self) -> ProcessPoolExecutor:
        worker = ProcessPoolExecutor(
            1, mp_context=self._context, initializer=_init_worker, initargs=(self._updates,)
        )
        number = worker.submit(os.getpid).result()
        with self.lock:
            self._workers.add(number)
            if self._is_stopped:
                _terminate(number)
        return worker


def _terminate(number: int) -> None:
    """Let a process save a checkpoint and end; on Windows, which has no signals, it only ends."""
    with suppress(OSError):  # already ended: ProcessLookupError, or another OSError on Windows
        os.kill(number, signal.SIGTERM)


def _init_worker(updates: Any) -> None:
    """Make this process end with its parent, and leave Ctrl-C to the parent."""
    global _updates
    _updates = updates
    atexit.register(exit_process, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)  # at once, so that its run directories are unlocked for whoever resumes the work


@contextmanager
def output_in(path: Path) -> Iterator[None]:
    """Append this process's output to a file; several processes would garble a terminal."""
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
