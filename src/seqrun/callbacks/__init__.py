"""Callbacks: code that runs around the events of a training run."""

from seqrun.callbacks.checkpoint import CheckpointCallback
from seqrun.callbacks.early_stopping import EarlyStoppingCallback
from seqrun.callbacks.interruption import Interrupted, InterruptionCallback
from seqrun.callbacks.memory import MemoryCallback
from seqrun.callbacks.metrics import MetricCallback
from seqrun.callbacks.preview import PreviewCallback
from seqrun.callbacks.profile import ProfileCallback
from seqrun.callbacks.progress import TqdmCallback
from seqrun.callbacks.record import RecordCallback
from seqrun.callbacks.stability_gap import StabilityGapCallback
from seqrun.callbacks.timing import TimingCallback
from seqrun.training.callback import BaseCallback, Run

__all__ = [
    "BaseCallback",
    "CheckpointCallback",
    "EarlyStoppingCallback",
    "Interrupted",
    "InterruptionCallback",
    "MemoryCallback",
    "MetricCallback",
    "PreviewCallback",
    "ProfileCallback",
    "RecordCallback",
    "Run",
    "StabilityGapCallback",
    "TimingCallback",
    "TqdmCallback",
]

OBSERVERS = (
    CheckpointCallback,
    MetricCallback,
    PreviewCallback,
    ProfileCallback,
    StabilityGapCallback,
    TimingCallback,
    TqdmCallback,
)
"""Callbacks that change no numbers: a run with them is the same experiment as one without."""
