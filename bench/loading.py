"""Measure preparing data: python bench/loading.py [--images N].

Generated images of 64 x 64 x 3 as large as Tiny ImageNet (a .npz file), JPEG decoding, and
20 tasks of Rotated MNIST (generated images in MNIST's shape). Every measurement has a process of
its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from seqrun.benchmarks import RotatedMNIST, SplitImageFolder, SplitNPZ
from seqrun.benchmarks.base import BaseBenchmark
from seqrun.benchmarks.source import ImageSource, RawImages
from seqrun.plan import RandomStreams
from seqrun.records.results import peak_rss_bytes
from seqrun.system import num_cores

CLASSES, TASKS = 200, 20
DECODED = {32: 10_000, 64: 10_000, 256: 1_000}
"""Side -> number of JPEG images."""


def write_arrays(path: Path, images: int) -> None:
    """Write a .npz file of noise: `images` for training and a tenth for testing."""
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for split, number in (("train", images), ("test", images // 10)):
            labels = np.arange(number) % CLASSES
            with archive.open(f"y_{split}.npy", "w") as file:
                np.lib.format.write_array(file, labels)
            with archive.open(f"x_{split}.npy", "w", force_zip64=True) as file:
                shape = (number, 64, 64, 3)
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for start in range(0, number, 1000):
                    block = (min(1000, number - start), 64, 64, 3)
                    file.write(rng.integers(0, 256, block, np.uint8).tobytes())


def write_jpegs(path: Path, side: int, number: int) -> None:
    """Write an archive of JPEG images, smooth as photographs are."""
    from PIL import Image

    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for n in range(number):
            small = rng.integers(0, 256, (8, 8, 3), np.uint8)
            image = Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)
            stream = io.BytesIO()
            image.save(stream, "JPEG", quality=90)
            split = "train" if n >= 20 else "test"
            archive.writestr(f"{split}/{n % 10}/{n}.jpg", stream.getvalue())


def memory() -> dict[str, float]:
    """Return MiB: the process's peak, and what of it now is its own (not pages of mapped files)."""
    peak = (peak_rss_bytes() or float("nan")) / 2**20
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    own = next((int(line.split()[1]) / 1024 for line in lines if "RssAnon" in line), float("nan"))
    return {"peak": peak, "own": own}


def through(benchmark: BaseBenchmark) -> dict[str, float]:
    """Prepare a benchmark, then read the data of every task; return seconds and MiB."""
    started = time.perf_counter()
    benchmark.check_data()
    benchmark.prepare(RandomStreams(0))
    prepared = time.perf_counter()
    own = 0.0
    for task in range(1, benchmark.num_tasks + 1):
        benchmark.task_data(task)
        own = max(own, memory()["own"])
    read = time.perf_counter() - prepared
    return {"prepare": prepared - started, "read": read} | memory() | {"own": own}


def arrays(folder: Path) -> dict[str, float]:
    """Go through the generated arrays."""
    return through(SplitNPZ(path=folder / "arrays.npz", num_tasks=TASKS))


def jpegs(folder: Path, side: str) -> dict[str, float]:
    """Decode generated images."""
    stream = SplitImageFolder(path=folder / f"{side}.zip", num_tasks=5)
    started = time.perf_counter()
    stream.check_data()
    return {"rate": DECODED[int(side)] / (time.perf_counter() - started)} | memory()


def rotated(folder: Path) -> dict[str, float]:
    """Prepare and read 20 tasks of Rotated MNIST on generated images."""
    rng = np.random.default_rng(0)

    def draw(number: int) -> tuple[np.ndarray, np.ndarray]:
        x = rng.integers(0, 256, (number, 28, 28, 1), np.uint8)
        return x, np.arange(number, dtype=np.int32) % 10

    raw = RawImages(*draw(60_000), *draw(10_000))

    class Rotated(RotatedMNIST):
        source = ImageSource(
            input_shape=(28, 28, 1),
            train_counts=(6000,) * 10,
            mean=None,
            std=None,
            checksum="",
            check=lambda data_dir: None,
            load=lambda data_dir: raw,
        )

    return through(Rotated(num_tasks=TASKS))


MEASURED: dict[str, Callable[..., dict[str, float]]] = {
    "arrays": arrays,
    "jpegs": jpegs,
    "rotated": rotated,
}


def measure(name: str, folder: Path, *arguments: str) -> dict[str, float]:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, "--measure", name, str(folder), *arguments]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def report(images: int) -> list[str]:
    """Measure everything and return the lines of the table."""
    lines = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_arrays(folder / "arrays.npz", images)
        for which in ("first", "second"):
            found = measure("arrays", folder)
            lines.append(
                f"{images} x 64 x 64 x 3 ({images * 12288 >> 20} MiB), {which} time: prepare "
                f"{found['prepare']:.1f} s, read {TASKS} tasks {found['read']:.1f} s, memory of "
                f"its own {found['own']:.0f} MiB, peak with mapped pages {found['peak']:.0f} MiB"
            )
        for side, number in DECODED.items():
            write_jpegs(folder / f"{side}.zip", side, number)
            found = measure("jpegs", folder, str(side))
            lines.append(f"decode JPEG {side} x {side}: {found['rate']:.0f} images/s")
        found = measure("rotated", folder)
        lines.append(
            f"Rotated MNIST, {TASKS} tasks: prepare {found['prepare']:.1f} s, rotate all "
            f"{found['read']:.1f} s, memory of its own {found['own']:.0f} MiB"
        )
    return [*lines, f"{num_cores()} cores"]


def main() -> None:
    """Print the table, or one measurement as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        name, folder, *arguments = asked.measure
        sys.stdout.write(json.dumps(MEASURED[name](Path(folder), *arguments)))
        return
    sys.stdout.write("\n".join(report(asked.images)) + "\n")


if __name__ == "__main__":
    main()
