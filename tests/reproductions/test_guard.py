"""Rows of seconds, on real MNIST: what RESULTS.md says of them is still so, on either side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from experiments import BACKENDS

from seqrun import preflight, runner
from seqrun.benchmarks.source import data_root
from seqrun.listing import CONF

RECORDS = json.loads((CONF.parent / "reproductions" / "results.json").read_text())
ROWS = ("der2020/split_mnist_naive", "der2020/split_mnist_er_200")
POINT, DEVIATIONS = 0.01, 4.0
"""A seed may miss the recorded mean by one point, or so many of the seeds' deviations if more."""


def largest_difference(std: float) -> float:
    """Return by how much one seed may miss the mean of all; last bits differ between machines."""
    return max(POINT, DEVIATIONS * std)


@pytest.mark.ci
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("row", ROWS)
def test_a_row_ends_as_recorded(row: str, backend: str, tmp_path: Path):
    """One seed of the recorded ones, every metric that the row is judged by."""
    root = data_root(None)
    if not (root / "MNIST" / "raw").is_dir():
        pytest.skip(f"needs MNIST in {root} (set SEQRUN_DATA)")
    record = RECORDS[row][backend]
    command = [f"reproductions={row}", f"backend={backend}", f"seed=[{record['seeds'][0]}]"]
    (job,) = preflight.check([*command, "logger=[]"], CONF)
    results = runner.run_experiment(job.config, tmp_path / "run", overrides=command)
    assert results.verdict is not None
    for metric, recorded in record["metrics"].items():
        found = results.verdict["metrics"][metric]["mean"]
        allowed = largest_difference(recorded["std"])
        assert recorded["mean"] - allowed <= found <= recorded["mean"] + allowed, metric


@pytest.mark.parametrize("backend", BACKENDS)
def test_bounds_are_narrow_enough_to_fail(backend: str):
    """None admits the other row: er is not naive."""
    naive, er = (RECORDS[row][backend]["metrics"]["average_accuracy"] for row in ROWS)
    apart = abs(naive["mean"] - er["mean"])
    assert apart > 3 * max(largest_difference(record["std"]) for record in (naive, er))
