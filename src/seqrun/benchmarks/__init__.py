"""Benchmarks: streams of tasks as arrays, each a recipe that a run prepares."""

from seqrun.benchmarks.base import BaseBenchmark, Dataset, LazyTasks, Transform
from seqrun.benchmarks.permuted import PermutedDigits, PermutedMNIST
from seqrun.benchmarks.rotated import RotatedDigits, RotatedMNIST
from seqrun.benchmarks.split import SplitDigits, SplitMNIST

__all__ = [
    "BaseBenchmark",
    "Dataset",
    "LazyTasks",
    "PermutedDigits",
    "PermutedMNIST",
    "RotatedDigits",
    "RotatedMNIST",
    "SplitDigits",
    "SplitMNIST",
    "Transform",
]
