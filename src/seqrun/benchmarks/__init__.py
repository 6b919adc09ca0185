"""Benchmarks: recipes for streams of tasks, which a run prepares as arrays."""

from seqrun.benchmarks.base import BaseBenchmark
from seqrun.benchmarks.cifar import SplitCIFAR10, SplitCIFAR100
from seqrun.benchmarks.image_folder import SplitImageFolder
from seqrun.benchmarks.npz import SplitNPZ
from seqrun.benchmarks.permuted import PermutedDigits, PermutedMNIST
from seqrun.benchmarks.rotated import RotatedDigits, RotatedMNIST
from seqrun.benchmarks.split import SplitDigits, SplitMNIST
from seqrun.benchmarks.tasks import LazyTasks, Transform
from seqrun.benchmarks.tiny_imagenet import SplitTinyImageNet
from seqrun.plan import Dataset

__all__ = [
    "BaseBenchmark",
    "Dataset",
    "LazyTasks",
    "PermutedDigits",
    "PermutedMNIST",
    "RotatedDigits",
    "RotatedMNIST",
    "SplitCIFAR10",
    "SplitCIFAR100",
    "SplitDigits",
    "SplitImageFolder",
    "SplitMNIST",
    "SplitNPZ",
    "SplitTinyImageNet",
    "Transform",
]
