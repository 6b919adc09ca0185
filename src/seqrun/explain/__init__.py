"""`python -m seqrun.explain <algorithm>`: an algorithm's card."""

from seqrun.cli.explain import main

__all__ = ["main"]
