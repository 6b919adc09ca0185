"""A progress bar for downloading and decoding."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(
    what: str, total: int | None, unit: str, *, done: int = 0
) -> Iterator[Callable[[int], object]]:
    """Show a bar on standard error, if that is a terminal; yield a function that advances it.

    Args:
        what: label of the bar.
        total: final count; None = not known.
        unit: of the counts; "B" is scaled by 1024.
        done: initial count.
    """
    if not sys.stderr.isatty():
        yield lambda number: None  # without importing tqdm
        return
    from tqdm import tqdm

    with tqdm(
        total=total,
        initial=done,
        desc=what,
        unit=unit,
        unit_scale=True,
        unit_divisor=1024 if unit == "B" else 1000,
        file=sys.stderr,
        dynamic_ncols=True,
        leave=False,
    ) as bar:
        yield bar.update
