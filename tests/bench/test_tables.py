"""The table of all algorithms that `make tables` measures."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from seqrun.checks import ConfigError
from seqrun.cli.listing import CONF

BENCH = CONF.parent / "bench"
PLAN = yaml.safe_load((BENCH / "tables.yaml").read_text(encoding="utf-8"))
DIGITS = {**PLAN, "columns": {"class": ["benchmark=split_digits", "benchmark.scenario=class"]}}
DIGITS["common"] = [o for o in PLAN["common"] if "samples_per_task" not in o]


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the module, which is in no package."""
    monkeypatch.syspath_prepend(str(BENCH))
    import tables

    return tables


@pytest.mark.ci
@pytest.mark.parametrize("algorithm", PLAN["search"])
def test_only_a_scenario_is_refused(tables: Any, algorithm: str):
    """Every algorithm composes with what is common to all; some need the task at test."""
    why = tables.refusal(tables.experiment_of(DIGITS, algorithm, "class"))
    assert (why is not None) == (algorithm in ("independent", "kcl"))


def test_any_other_error_is_not_taken_for_a_refusal(tables: Any):
    """It would be shown as "not admitted"."""
    with pytest.raises(ConfigError, match="grad_clip"):
        tables.refusal(["algo=lamaml", "training.grad_clip=1"])
