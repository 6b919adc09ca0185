"""Memories: what a replay method keeps of past samples, planned in NumPy."""

from seqrun.memory.mechanism import MemoryMechanism
from seqrun.memory.policies import POLICIES

__all__ = ["POLICIES", "MemoryMechanism"]
