"""`python -m seqrun.explain <algorithm>`: print an algorithm's card."""

from seqrun.cli.explain import main

__all__ = ["main"]
