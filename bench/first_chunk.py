"""A callback for `make bench`: when a run's first training steps were done."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from seqrun.callbacks import BaseCallback
from seqrun.training.callback import Run

FILE = "SEQRUN_FIRST_CHUNK"
"""Environment variable with the path of the file that gets the time, in seconds since the epoch."""


class FirstChunk(BaseCallback):
    """Write the time after the first chunk of steps, a quarter of a second of them at most."""

    is_done = False

    def on_after_chunk(self, run: Run, chunk: Any) -> None:
        """Write it once."""
        if not self.is_done:
            self.is_done = True
            Path(os.environ[FILE]).write_text(repr(time.time()), encoding="utf-8")
