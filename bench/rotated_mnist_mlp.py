"""Rotated MNIST with an MLP, as every part of `make bench` uses it: sizes, stream, overrides."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from seqrun.benchmarks import BaseBenchmark, RotatedDigits, RotatedMNIST, SplitDigits, SplitMNIST

BATCH, WIDTH, LR, NUM_TASKS = 10, 256, 0.01, 5
SIZES = (784, WIDTH, WIDTH, 10)
OVERRIDES = ["benchmark=rotated_mnist", f"optimizer.lr={LR}", "training.evaluate_on=seen"]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a process of the bench trains Rotated MNIST.

    Args:
        threads: of the CPU.
        samples: of each task; None = all.
        device: "cpu" or "cuda".
        digits: scikit-learn's digits with black borders, where MNIST is not there: the same shapes.
    """

    threads: int = 1
    samples: int | None = None
    device: str = "cpu"
    digits: bool = False

    def arguments(self) -> list[str]:
        """Return the command-line arguments that `setting_of` reads."""
        told = ["--threads", str(self.threads), "--device", self.device]
        told += [] if self.samples is None else ["--samples", str(self.samples)]
        return [*told, *(["--digits"] if self.digits else [])]

    def overrides(self, num_tasks: int) -> list[str]:
        """Return the overrides that select this work, all but the algorithm."""
        data = ["benchmark=rotated_digits", "benchmark.pad_to=28"] if self.digits else []
        told = [*OVERRIDES, *data, *sized(self.samples), f"benchmark.num_tasks={num_tasks}"]
        return [*told, f"device={self.device}", f"backbone.width={WIDTH}"]

    def stream(self, num_tasks: int, samples: int | None = None) -> BaseBenchmark:
        """Return Rotated MNIST's stream of so many tasks, of `samples` each if that is given."""
        keys = {"num_tasks": num_tasks, "batch_size": BATCH}
        keys["samples_per_task"] = samples or self.samples
        return RotatedDigits(pad_to=28, **keys) if self.digits else RotatedMNIST(**keys)

    def split(self, num_tasks: int) -> BaseBenchmark:
        """Return a class-incremental stream of the same shapes, for what needs one."""
        keys = {"num_tasks": num_tasks, "batch_size": BATCH, "scenario": "class"}
        keys["samples_per_task"] = self.samples
        return SplitDigits(pad_to=28, **keys) if self.digits else SplitMNIST(**keys)


def add_setting(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of a Setting to a command."""
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--samples", type=int, help="of a task; default: all")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--digits", action="store_true", help="in place of MNIST")


def setting_of(asked: argparse.Namespace) -> Setting:
    """Return the Setting that a command asks for."""
    return Setting(
        threads=asked.threads, samples=asked.samples, device=asked.device, digits=asked.digits
    )


def sized(samples: int | None) -> list[str]:
    """Return the override of a task's samples."""
    return [] if samples is None else [f"benchmark.samples_per_task={samples}"]
