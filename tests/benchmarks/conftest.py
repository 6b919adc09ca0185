"""Real MNIST when it is there, and streams."""

from __future__ import annotations

import pytest

from seqrun.benchmarks.mnist import check_mnist
from seqrun.benchmarks.source import data_root
from seqrun.plan import RandomStreams


@pytest.fixture(scope="session")
def mnist_dir():
    """Return the folder of the real MNIST; skip, saying so, when it is not there."""
    root = data_root(None)
    raw = root / "MNIST" / "raw"
    if not any(raw.glob("train-images-idx3-ubyte*")):
        pytest.skip(f"needs MNIST in {raw} (set SEQRUN_DATA)")
    check_mnist(root)
    return root


@pytest.fixture
def streams():
    """Return the streams of seed 0."""
    return RandomStreams(0)
