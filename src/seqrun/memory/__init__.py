"""Replay memories: the past samples that a method stores, planned in NumPy."""

from seqrun.memory.mechanism import MemoryMechanism
from seqrun.memory.policies import POLICIES

__all__ = ["POLICIES", "MemoryMechanism"]
