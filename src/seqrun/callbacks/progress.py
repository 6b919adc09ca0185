"""TqdmCallback: a progress bar."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

from seqrun.plan import Chunk
from seqrun.training.callback import BaseCallback, Run


@dataclass(kw_only=True, eq=False)
class TqdmCallback(BaseCallback):
    """Show task, epoch, loss, training accuracy and rate on standard error during a run.

    The bar is updated after each chunk and shows the chunk's mean loss and accuracy. Nothing is
    shown if standard error is not a terminal.
    """

    _bar: Any = field(default=None, init=False, repr=False)

    def on_before_fit(self, run: Run) -> None:
        """Create the bar; in a resumed run it starts at the steps already done."""
        if not sys.stderr.isatty():
            return
        from tqdm import tqdm

        self._bar = tqdm(
            desc="preparing",  # and compiling, until the first chunk ends
            total=run.total_steps,
            initial=run.step,
            unit=" steps",
            file=sys.stderr,
            dynamic_ncols=True,
            leave=False,
            unit_scale=True,
            bar_format="{desc} {bar} {n_fmt}/{total_fmt}{postfix} {rate_fmt} {remaining}",
        )

    def on_after_chunk(self, run: Run, chunk: Chunk) -> None:
        """Advance the bar by the chunk's steps."""
        if self._bar is None:
            return
        assert chunk.losses is not None and chunk.correct is not None
        tasks = run.algorithm.benchmark.num_tasks
        epochs = run.algorithm.epochs(chunk.task)
        accuracy = chunk.correct.sum() / (chunk.steps * chunk.batch_size)
        self._bar.set_description_str(
            f"task {chunk.task}/{tasks} epoch {chunk.epoch}/{epochs}", refresh=False
        )
        self._bar.set_postfix_str(
            f"loss {chunk.losses.mean():.3f} acc {100 * accuracy:.1f} %", refresh=False
        )
        self._bar.update(chunk.steps)

    def on_before_validation(self, run: Run) -> None:
        """Clear the bar, so that loggers print on an empty line."""
        if self._bar is not None:
            self._bar.clear()

    def on_before_teardown(self, run: Run) -> None:
        """Remove the bar, also after a failure, before loggers print their last lines."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
