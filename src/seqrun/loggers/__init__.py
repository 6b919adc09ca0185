"""Loggers: where the values of a run go."""

from seqrun.loggers.base import BaseLogger, RunInfo
from seqrun.loggers.console import ConsoleLogger
from seqrun.loggers.local import LocalLogger

__all__ = ["BaseLogger", "ConsoleLogger", "LocalLogger", "RunInfo"]
