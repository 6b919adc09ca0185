"""What checkpoints cost: size, seconds to write and to read, share of a run's time.

`python bench/checkpoints.py [ALGO ...]` prints a table. An MLP 784-256-256-10 and
batches of 10, on digits padded to 28 x 28, so that no data set has to be there.
"""

from __future__ import annotations

import logging
import statistics
import sys
import tempfile
import time
from pathlib import Path

from seqrun.cli import preflight
from seqrun.config import build as experiment
from seqrun.records.checkpoint import FOLDER, latest, save
from seqrun.training.trainer import Trainer

CONF = Path(__file__).parents[1] / "conf"
KEYS = ("benchmark.pad_to=28", "benchmark.num_tasks=2", "logger=[]", "device=cpu")
REPETITIONS = 9
EVERY_SECONDS = 300  # callbacks.checkpoint.every_minutes as it is shipped


def measure(algo: str) -> tuple[float, float, float]:
    """Return a checkpoint's bytes, and the median seconds to write and to read one."""
    (job,) = preflight.check([f"algo={algo}", "callbacks=[metrics]", *KEYS], CONF)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        directory = Path(folder)
        algorithm = experiment.build(job.config, 0, directory)
        algorithm.fit()
        writing, reading = [], []
        for _ in range(REPETITIONS):
            algorithm.progress.global_step += 1  # or it would be there already
            started = time.perf_counter()
            save(Trainer(algorithm).checkpoint(), directory, config_hash=job.hash)
            writing.append(time.perf_counter() - started)
            started = time.perf_counter()
            assert latest(directory, config_hash=job.hash)[0] is not None
            reading.append(time.perf_counter() - started)
        last = max((directory / FOLDER).iterdir())
        size = sum(path.stat().st_size for path in last.iterdir())
    return size, statistics.median(writing), statistics.median(reading)


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    logging.info("algo | MB | write, s | read, s | share of a run that writes one in 5 minutes")
    for algo in sys.argv[1:] or ["naive", "ewc", "er"]:
        size, write, read = measure(algo)
        share = write / EVERY_SECONDS
        logging.info(f"{algo} | {size / 1e6:.1f} | {write:.3f} | {read:.3f} | {share:.3%}")
