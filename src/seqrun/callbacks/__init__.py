"""Callbacks: code that runs around the events of a training run."""

from seqrun.callbacks.base import BaseCallback
from seqrun.callbacks.checkpoint import CheckpointCallback
from seqrun.callbacks.interruption import Interrupted, InterruptionCallback
from seqrun.callbacks.metrics import MetricCallback
from seqrun.callbacks.progress import TqdmCallback
from seqrun.callbacks.record import RecordCallback

__all__ = [
    "BaseCallback",
    "CheckpointCallback",
    "Interrupted",
    "InterruptionCallback",
    "MetricCallback",
    "RecordCallback",
    "TqdmCallback",
]
