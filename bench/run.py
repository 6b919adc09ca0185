"""Measure speed and print a table for each part: python bench/run.py [--only PART ...] [--write].

Work "Rotated MNIST": 5 tasks x 60,000 samples, batch 10, 1 epoch, MLP 784-256-256-10, SGD
lr 0.01. Work "ResNet18Thin": batch 10, 32 x 32 x 3 random images, SGD lr 0.01. Rates are medians
(min-max) of interleaved repetitions; only ratios of one run are comparable, since machines are
noisy. "Compiled" is training.compile=always, and a hand-written graph of eight steps. The roofline
is what the matrix products of a step and its update's memory traffic take (bench/roofline.py). The
peers turn an image whenever they read it, as their own Rotated MNIST does; in "peers_turned" theirs
are uint8 images that were turned before, as seqrun's are. How they are run, and what is left out:
bench/peers/work.py, bench/peers/adapters.py, bench/beside_convolution.py. Compilation caches are
"cold" where their folders are new, "warm" after one run. "phases" has what Fisher, importance,
coresets, herding and evaluation cost per sample (bench/phases.py).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import beside_convolution
import beside_hand_written
import beside_peers
import first_chunk
import gpu
import many_seeds
import phases
import scaling
import whole_program
from commands import ROOT, command, compiling_in
from report import BACKENDS, Row, machine, median, read_sections, section, write_sections
from rich.console import Console
from rich.table import Table
from rotated_mnist_mlp import NUM_TASKS, OVERRIDES, Setting, sized

SHORT_RUN = 10.0
"""Seconds of the run of which start-up is a share."""


def training_rows(asked: argparse.Namespace) -> list[Row]:
    """Measure training rates beside hand-written loops and a roofline, Fisher and evaluation."""
    return beside_hand_written.rows(Setting(samples=asked.samples), asked.repetitions)


def phase_rows(asked: argparse.Namespace) -> list[Row]:
    """Measure what a sample costs in every phase beside training."""
    return phases.rows(Setting(samples=asked.samples), asked.repetitions)


def peer_rows(asked: argparse.Namespace, data: str) -> list[Row]:
    """Measure training rates of other libraries beside seqrun's; `data` as bench/peers/work.py."""
    sizes = asked.repetitions, asked.peer_steps, asked.samples
    return beside_peers.rows(*sizes, data, asked.algorithms)


def convolution_rows(asked: argparse.Namespace) -> list[Row]:
    """Measure ResNet18Thin's training rates beside hand-written loops and the peers."""
    return beside_convolution.rows(asked.repetitions, asked.convolution_steps)


def whole_program_rows(asked: argparse.Namespace) -> list[Row]:
    """Measure Rotated MNIST from command to table, by phase, and the peers' whole programs."""
    return whole_program.rows(asked.algorithms, asked.repetitions, asked.tasks, asked.samples)


def start_rows(asked: argparse.Namespace) -> list[Row]:
    """Measure --help and the way to the first steps, without and with compiled programs kept."""
    helps = []
    for _ in range(asked.repetitions):
        started = time.perf_counter()
        command("run.py", "--help")
        helps.append(time.perf_counter() - started)
    rows: list[Row] = [("run.py --help, s", median(helps, 2), "")]
    kinds = [("default experiment", [], backend) for backend in BACKENDS]
    base = [*OVERRIDES, *sized(asked.samples)]
    kinds += [("Rotated MNIST naive", base, backend) for backend in BACKENDS]
    for what, overrides, backend in kinds:
        cold, warm = [], []
        for _ in range(asked.repetitions):
            with tempfile.TemporaryDirectory() as folder:
                cold.append(_first_steps(Path(folder), [*overrides, f"backend={backend}"]))
                warm.append(_first_steps(Path(folder), [*overrides, f"backend={backend}"]))
        for when, found in (("nothing compiled before", cold), ("again", warm)):
            share = f"{statistics.median(found) / SHORT_RUN:.0%} of a run of {SHORT_RUN:.0f} s"
            name = f"{what}, {backend}: command to first steps, {when}, s"
            rows.append((name, median(found, 1), share))
    return rows


def _first_steps(folder: Path, overrides: list[str]) -> float:
    """Return the seconds from a command to the end of its first chunk, and end it there."""
    file = folder / "first"
    environment = compiling_in(folder)
    environment |= {first_chunk.FILE: str(file), "PYTHONPATH": _path()}
    arguments = [sys.executable, "run.py", *overrides, f"hydra.run.dir={folder}/run"]
    arguments += ["allow_targets=[first_chunk]", "resume=never"]
    arguments += ["+callbacks.first._target_=first_chunk.FirstChunk"]
    started = time.time()
    process = subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    while not file.exists() or not file.read_text(encoding="utf-8"):
        if process.poll():
            raise subprocess.CalledProcessError(process.returncode, arguments)
        time.sleep(0.02)
    process.terminate()  # it saves and ends
    process.wait()
    seconds = float(file.read_text(encoding="utf-8")) - started
    file.unlink()
    return seconds


def _path() -> str:
    """Return PYTHONPATH with the folder of the callback that writes the time."""
    given = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(ROOT / "bench"), *([given] if given else [])])


def sweep_rows(asked: argparse.Namespace) -> list[Row]:
    """Measure what a job of a multirun in one process costs besides its own work."""
    rows: list[Row] = []
    for backend in BACKENDS:
        with tempfile.TemporaryDirectory() as folder:
            seeds = ",".join(map(str, range(asked.repetitions + 1)))
            jobs = ["-m", "algo=naive", f"backend={backend}", *OVERRIDES, *sized(asked.samples)]
            command("run.py", *jobs, f"seed={seeds}", f"hydra.sweep.dir={folder}")
            files = sorted(Path(folder).glob("*/results.json"), key=lambda f: f.stat().st_mtime)
            ends = [file.stat().st_mtime for file in files]
            timings = [
                json.loads(file.read_text(encoding="utf-8"))["runs"][0]["timing"] for file in files
            ]
        parts = [[t[f"{p}_seconds"] for p in ("setup", "train", "eval")] for t in timings[1:]]
        work = list(map(sum, parts))
        over = [b - a - w for a, b, w in zip(ends, ends[1:], work, strict=False)]
        share = f"{statistics.median(over) / SHORT_RUN:.0%} of a job of {SHORT_RUN:.0f} s"
        name = f"Rotated MNIST naive, {backend}: a job after the first of a multirun in one process"
        setup, train, evaluation = map(statistics.median, zip(*parts, strict=True))
        told = f"data and network {setup:.1f}, training {train:.1f}, evaluation {evaluation:.1f}"
        total = [o + w for o, w in zip(over, work, strict=True)]
        rows.append((f"{name}, s", median(total, 1), told))
        rows.append((f"{name}, besides these, s", median(over, 2), share))
    return rows


def data_rows(asked: argparse.Namespace) -> list[Row]:
    """Measure rotating a task of 60,000 images."""
    import numpy as np

    from seqrun.benchmarks.rotation import rotate

    images = np.random.default_rng(0).integers(0, 256, (60_000, 28, 28, 1), np.uint8)
    seconds = []
    for _ in range(asked.repetitions):
        started = time.perf_counter()
        rotate(images, 36.0)
        seconds.append(time.perf_counter() - started)
    return [("rotate 60,000 28 x 28 images (bilinear), s", median(seconds, 2), "")]


def loading_rows(asked: argparse.Namespace) -> list[Row]:
    """Measure preparing data as large as Tiny ImageNet, decoding, and 20 tasks, with memory."""
    lines = command("bench/loading.py").splitlines()[:-1]  # the last one is of the machine
    split = [line.split(": ", 1) for line in lines]
    return [(what, found, "") for what, found in split]


def scaling_rows(asked: argparse.Namespace) -> list[Row]:
    """Measure how time and memory grow with tasks and with samples."""
    base = ["algo=naive", *OVERRIDES]
    return scaling.rows(base, asked.repetitions, asked.tasks, asked.samples)


def seeds_rows(asked: argparse.Namespace) -> list[Row]:
    """Measure several seeds in one command, of every algorithm that is asked for."""
    base = [*OVERRIDES, *sized(asked.samples), f"benchmark.num_tasks={asked.tasks}"]
    return many_seeds.rows(base, asked.repetitions, asked.algorithms)


def gpu_rows(asked: argparse.Namespace) -> list[Row]:
    """Measure training rates and 1 to 256 seeds in one program on a GPU."""
    setting = Setting(samples=asked.samples, device="cuda")
    return gpu.rows(setting, asked.repetitions, asked.tasks)


PARTS: dict[str, tuple[Callable[[argparse.Namespace], list[Row]], str]] = {
    "training": (training_rows, "training beside hand-written loops and a roofline; the Fisher"),
    "phases": (phase_rows, "what a sample costs in every phase beside training"),
    "peers": (partial(peer_rows, data="turning"), "training beside other libraries"),
    "peers_turned": (partial(peer_rows, data="images"), "the same, their images turned before"),
    "convolution": (convolution_rows, "ResNet18Thin beside hand-written loops and the peers"),
    "whole_program": (whole_program_rows, "command to table, beside the peers' programs"),
    "start": (start_rows, "--help, and from a command to the first steps"),
    "sweep": (sweep_rows, "what a job of a multirun costs besides its own work"),
    "data": (data_rows, "rotating a task's images"),
    "loading": (loading_rows, "preparing and reading data as large as Tiny ImageNet's"),
    "scaling": (scaling_rows, "time and memory by tasks and by samples"),
    "seeds": (seeds_rows, "1 to 10 seeds in one command"),
    "gpu": (gpu_rows, "training rates and 1 to 256 seeds in one program, on a GPU"),
}


def arguments() -> argparse.Namespace:
    """Return what the command asks for."""
    parser = argparse.ArgumentParser(
        description="Measure speed and print a table for each part; works are in bench/RESULTS.md.",
        epilog="\n".join(["parts:", *(f"  {name:13} {told}" for name, (_, told) in PARTS.items())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    how = "of everything; tables show medians (min-max)"
    parser.add_argument("--repetitions", type=int, default=5, metavar="N", help=how)
    told = "as below, with spaces between; default: all, which takes hours"
    parser.add_argument(
        "--only", nargs="+", choices=tuple(PARTS), default=[*PARTS], metavar="PART", help=told
    )
    parser.add_argument("--write", action="store_true", help="put them into bench/RESULTS.md")
    parser.add_argument("--samples", type=int, help="of each task; default: 60,000")
    parser.add_argument("--tasks", type=int, default=NUM_TASKS, help="of whole runs")
    names = ",".join(beside_peers.ALGORITHMS)
    kinds = "of peers, whole_program and seeds, with commas between"
    parser.add_argument("--algorithms", type=_names, default=names, help=kinds)
    parser.add_argument("--peer-steps", type=int, default=600, help="of a peer that are timed")
    parser.add_argument("--convolution-steps", type=int, default=30, help="that are timed")
    return parser.parse_args()


def _names(text: str) -> tuple[str, ...]:
    """Return the algorithms of a list with commas.

    Raises:
        argparse.ArgumentTypeError: one that the parts do not have.
    """
    names = tuple(text.split(","))
    if wrong := set(names) - set(beside_peers.ALGORITHMS):
        allowed = ", ".join(beside_peers.ALGORITHMS)
        raise argparse.ArgumentTypeError(f"{', '.join(wrong)}: must be of {allowed}")
    return names


def how(asked: argparse.Namespace, part: str) -> str:
    """Return the command that measures a part alone."""
    told = f"--only {part} --write --repetitions {asked.repetitions}"
    told += "" if asked.samples is None else f" --samples {asked.samples}"
    told += f" --peer-steps {asked.peer_steps}" if part.startswith("peers") else ""
    told += f" --convolution-steps {asked.convolution_steps}" if part == "convolution" else ""
    if part.startswith("peers") or part in ("whole_program", "seeds"):
        told += f" --algorithms {','.join(asked.algorithms)}"
    if part in ("whole_program", "scaling", "seeds", "gpu"):
        told += f" --tasks {asked.tasks}"
    return f'make bench ARGS="{told}"'


def main() -> None:
    """Print the tables; with --write, put each into bench/RESULTS.md as it is there."""
    asked = arguments()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else every command compiles its modules anew
    console = Console()
    for part in asked.only:
        rows = PARTS[part][0](asked)
        table = Table("what", "median (min-max)", "ratio or parts", title=part)
        for row in rows:
            table.add_row(*row)
        console.print(table)
        console.print(machine())
        if asked.write:
            found = read_sections() | {part: section(rows, how(asked, part))}
            sections = {name: found[name] for name in PARTS if name in found}
            write_sections(sections, (__doc__ or "").split("\n\n")[1].strip())


if __name__ == "__main__":
    main()
