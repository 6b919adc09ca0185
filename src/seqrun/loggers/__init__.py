"""Loggers: destinations for the values that a run logs."""

from seqrun.loggers.base import BaseLogger, RunInfo
from seqrun.loggers.comet import CometLogger
from seqrun.loggers.console import ConsoleLogger
from seqrun.loggers.local import LocalLogger
from seqrun.loggers.tensorboard import TensorBoardLogger
from seqrun.loggers.tracker import TrackerLogger
from seqrun.loggers.wandb import WandbLogger

__all__ = [
    "BaseLogger",
    "CometLogger",
    "ConsoleLogger",
    "LocalLogger",
    "RunInfo",
    "TensorBoardLogger",
    "TrackerLogger",
    "WandbLogger",
]
