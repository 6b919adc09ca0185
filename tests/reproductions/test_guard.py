"""Rows of seconds, on real MNIST: what was recorded of a seed is still so, on either side."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from experiments import BACKENDS

from seqrun.benchmarks.source import data_root
from seqrun.cli import preflight
from seqrun.cli.listing import CONF
from seqrun.reproductions.rows import protocol_of
from seqrun.runs import runner

FOLDER = CONF.parent / "reproductions"
RECORDS = json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))
ROWS = tuple(f"der2020/split_mnist_{name}" for name in ("naive", "online_ewc", "der_200"))
"""Plain SGD on small networks: another framework or machine moves a seed by a tenth of a point."""
POINTS = 0.005


@pytest.mark.ci
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("row", ROWS)
def test_a_seed_ends_as_recorded(row: str, backend: str, tmp_path: Path):
    """Every metric that the row is judged by."""
    root = data_root(None)
    if not (root / "MNIST" / "raw").is_dir():
        pytest.skip(f"needs MNIST in {root} (set SEQRUN_DATA)")
    record = RECORDS[row][backend]
    command = [f"reproductions={row}", f"backend={backend}", f"seed=[{record['seeds'][0]}]"]
    (job,) = preflight.check([*command, "logger=[]"], CONF)
    results = runner.run_experiment(job.config, tmp_path / "run", overrides=command)
    assert results.verdict is not None
    found = {name: number["mean"] for name, number in results.verdict["metrics"].items()}
    recorded = {name: values[0] for name, values in record["values"].items()}
    assert found == pytest.approx(recorded, abs=POINTS)


@pytest.mark.parametrize("row", ROWS)
def test_records_are_of_the_rows_as_they_stand(row: str):
    assert {record["protocol"] for record in RECORDS[row].values()} == {protocol_of(FOLDER, row)}


@pytest.mark.parametrize("backend", BACKENDS)
def test_bounds_are_narrow_enough_to_fail(backend: str):
    """No row would pass for another."""
    for one, other in itertools.combinations(ROWS, 2):
        pair = [RECORDS[row][backend]["values"] for row in (one, other)]
        apart = max(abs(pair[0][name][0] - pair[1][name][0]) for name in pair[0])
        assert apart > 2 * POINTS, (one, other)
