"""`make reproduce`: the page's lines from hand-made records, and what its arguments choose."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from seqrun import reproduce
from seqrun.verdict import Expected

COMMIT = "0123456789abcdef"


def row(name: str, status: str = "confirmed", **metrics: dict[str, float]) -> reproduce.Row:
    """Return a row with these numbers."""
    node = {"paper": "Someone 2020", "table": "1", "source": "there", "status": status}
    return reproduce.Row(name, Expected.of({**node, "metrics": metrics}))


def record(verdict: str, seconds: float, **metrics: dict[str, Any]) -> dict[str, Any]:
    """Return what results.json keeps of a run of three seeds."""
    told = {name: {"verdict": verdict, **found} for name, found in metrics.items()}
    kept = {"verdict": verdict, "metrics": told, "seeds": [0, 1, 2], "seconds": seconds}
    return {**kept, "commit": COMMIT}


ROWS = [
    row(
        "alpha2020/both",
        average_accuracy={"mean": 0.5, "std": 0.0125},
        average_accuracy_task_aware={"mean": 0.9},
    ),
    row("alpha2020/one", "unconfirmed", average_accuracy={"mean": 0.25}),
    row("beta2021/none", average_forgetting={"mean": 0.01}),
]
ACCURACY = {"mean": 0.5123, "half_width": 0.0045}
CONTENT = {
    "alpha2020/both": {
        "torch": record(
            "reproduced",
            61.4,
            average_accuracy=ACCURACY,
            average_accuracy_task_aware={"mean": 0.9512, "half_width": None},
        ),
        "jax": record(
            "above",
            30.6,
            average_accuracy={"mean": 0.53, "half_width": 0.002},
            average_accuracy_task_aware={"mean": None, "half_width": None},
        ),
    },
    "alpha2020/one": {"jax": record("below", 5.0, average_accuracy=ACCURACY)},
}


def test_page():
    """Every line, by hand."""
    page = reproduce.page(ROWS, CONTENT)
    assert page.startswith(reproduce.HEAD) and page.endswith("|\n")
    assert page[len(reproduce.HEAD) :].strip().splitlines() == [
        "| numbers | backend | reproduced | above | below | inconclusive | not run |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| confirmed | torch | 1 | 0 | 0 | 0 | 1 |",
        "| confirmed | jax | 0 | 1 | 0 | 0 | 1 |",
        "| recalled | torch | 0 | 0 | 0 | 0 | 1 |",
        "| recalled | jax | 0 | 0 | 1 | 0 | 0 |",
        "",
        "Torch's and JAX's intervals overlap in 0 of 1 numbers",
        "measured on both; not in alpha2020/both (average accuracy).",
        "",
        "## alpha2020",
        "",
        "Someone 2020",
        "",
        "| row | metric | published | torch | jax | seeds | verdict | s | commit |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| both | average accuracy | 50.00 ± 1.25 | 51.23 ± 0.45 | 53.00 ± 0.20 | 3 "
        "| reproduced, above | 61, 31 | 01234567 |",
        "|  | average accuracy, task given | 90.00 | 95.12 | undefined |  "
        "| reproduced, above |  |  |",
        "| one | average accuracy | 25.00 *recalled* | not run | 51.23 ± 0.45 | 3 | below | 5 "
        "| 01234567 |",
        "",
        "## beta2021",
        "",
        "Someone 2020",
        "",
        "| row | metric | published | torch | jax | seeds | verdict | s | commit |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| none | average forgetting | 1.00 | not run | not run |  |  |  |  |",
    ]


@pytest.mark.parametrize(
    ("mean", "said"),
    [(0.5187, "in 1 of 1 numbers\nmeasured on both.\n"), (0.5189, "in 0 of 1 numbers\n")],
)
def test_backends_agree_where_their_intervals_overlap(mean, said):
    """0.5123 + 0.0045 = 0.5168 is the upper end of one, `mean` - 0.002 the lower of the other."""
    other = {"mean": mean, "half_width": 0.002}
    measured = {
        "torch": record("reproduced", 1.0, average_accuracy=ACCURACY),
        "jax": record("reproduced", 1.0, average_accuracy=other),
    }
    assert said in reproduce.page(ROWS[:1], {"alpha2020/both": measured})


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Path:
    """Let `make reproduce` keep its files in a folder of the test's own; return it."""
    folder = tmp_path / reproduce.FOLDER
    for name in ("hsu2018/class_si", "si2017/permuted_mnist", "protocols/hsu2018"):
        source = reproduce.ROOT / reproduce.FOLDER / f"{name}.yaml"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, folder / f"{name}.yaml")
    monkeypatch.setattr(reproduce, "ROOT", tmp_path)
    return folder


def test_only_the_page(elsewhere):
    """From results.json, with a line for each row that there is, and nothing run."""
    records = {"hsu2018/class_si": {"torch": record("reproduced", 9.0, average_accuracy=ACCURACY)}}
    (elsewhere / reproduce.RECORDS).write_text(json.dumps(records))
    assert reproduce.main(["--page"]) == 0
    page = (elsewhere / reproduce.PAGE).read_text()
    assert "| class_si | average accuracy | 19.67 ± 0.09 | 51.23 ± 0.45 | not run | 3 |" in page
    assert "| permuted_mnist | average accuracy | 96.94 | not run | not run |" in page
    assert "protocols" not in page
    assert json.loads((elsewhere / reproduce.RECORDS).read_text()) == records


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "hsu2019/*"], "--only=hsu2019/*: matches no row for cpu"),
        (["--only", "hsu2018/*", "--machine", "gpu"], "--only=hsu2018/*: matches no row for gpu"),
        (["--only", "protocols/*"], "--only=protocols/*: matches no row for cpu"),
    ],
)
def test_no_row_is_an_error(elsewhere, capsys, arguments, said):
    """One message, and nothing is written."""
    assert reproduce.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err == f"error: {said}\n" and captured.out == ""
    assert not (elsewhere / reproduce.PAGE).exists()


def test_rows_that_take_least_time_come_first(elsewhere):
    """A protocol is no row."""
    path = elsewhere / "hsu2018" / "class_si.yaml"
    path.write_text(path.read_text().replace("num_seeds: 10", "num_seeds: 10\n  minutes: 2.5"))
    names = [found.name for found in reproduce.rows_of(elsewhere)]
    assert names == ["si2017/permuted_mnist", "hsu2018/class_si"]
