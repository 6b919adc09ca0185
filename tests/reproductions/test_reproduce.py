"""`make reproduce`: what it runs, keeps, leaves out and survives, beside a run.py of our own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from seqrun.checks import BACKENDS
from seqrun.evaluation.verdict import judge
from seqrun.records.results import Results, RunRecord
from seqrun.reproductions import __main__ as reproduce
from seqrun.reproductions.records import PAGE, RECORDS
from seqrun.reproductions.rows import FOLDER, protocol_of, rows_of

PAPER = "paper2020"
ROW = """\
# @package _global_
optimizer: {{lr: {lr}}}
expected:
  paper: Someone 2020
  table: '1'
  source: there
  status: confirmed
  num_seeds: 10
  minutes: {minutes}
  metrics:
    average_accuracy: {{mean: 0.5, std: 0.02}}
"""
RUN = """\
import json, sys, time
from pathlib import Path
keys = dict(argument.split("=") for argument in sys.argv[1:] if argument[0] != "~")
log = Path("{log}")
with log.open("a") as told:
    told.write(" ".join(sys.argv[1:]) + "\\n")
name = keys["reproductions"].split("/")[1] + "-" + keys["backend"]
while (Path("{root}") / f"{{name}}.waits").exists():
    time.sleep(0.01)
made = Path("{root}") / f"{{name}}.json"
if not made.exists():
    sys.exit("no such luck")
directory = Path(keys["hydra.run.dir"])
directory.mkdir(parents=True)
text = made.read_text()
if text.endswith("}}\\n"):
    found = json.loads(text)
    found["seeds"] = json.loads(keys["seed"])
    found["runs"] = [run for run in found["runs"] if run["seed"] in found["seeds"]]
    text = json.dumps(found)
(directory / "results.json").write_text(text)
"""
SEEDS = range(10)
ACCURACIES = {
    "torch": [0.5 + s % 3 / 100 for s in SEEDS],
    "jax": [0.6 + s % 3 / 100 for s in SEEDS],
}
"""Five seeds: mean 0.508 (0.608), deviation 0.00837, which asks for no more."""
WIDE = [0.5 + 0.0175 * (s % 5 - 2) for s in SEEDS]
"""Five seeds: deviation 0.02767, which asks for ten."""


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """Two rows, and what run.py will say of them; hashes are made of the rows' text."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / FOLDER / PAPER
    folder.mkdir(parents=True)
    for name, minutes in (("long", 9), ("short", 1)):
        (folder / f"{name}.yaml").write_text(ROW.format(lr=0.1, minutes=minutes), encoding="utf-8")
        for backend, accuracies in ACCURACIES.items():
            (tmp_path / f"{name}-{backend}.json").write_text(
                finished(tmp_path, accuracies), encoding="utf-8"
            )
    script = RUN.format(root=tmp_path, log=tmp_path / "commands")
    (tmp_path / "run.py").write_text(script, encoding="utf-8")
    monkeypatch.setattr(reproduce, "ROOT", tmp_path)
    monkeypatch.setattr(reproduce, "COMMAND", (sys.executable, str(tmp_path / "run.py")))
    monkeypatch.setattr(reproduce, "checked_row", lambda argv: SimpleNamespace(hash=hashed(argv)))
    return tmp_path


def hashed(overrides: list[str]) -> str:
    """Return a config hash."""
    name, backend, *others = (override.rpartition("=")[2] for override in overrides)
    more = "x".join([*others, VERSION["numerics"]])
    return f"{protocol_of(Path(FOLDER), name)}{backend}{more}"


VERSION = {"numerics": ""}
"""Of an algorithm's numbers."""


def finished(root: Path, accuracies: Sequence[float]) -> str:
    """Return results.json of seeds with these final accuracies, judged."""
    names = {"algo": "ewc", "benchmark": "b", "backbone": "mlp", "backend": "torch"}
    seeds = tuple(range(len(accuracies)))
    results = Results.start(
        root / "made", name=names, config_hash="h", measured_on="test", seeds=seeds
    )
    results.runs = [
        RunRecord(
            seed=seed,
            accuracy_matrix=np.array([[0.1], [accuracy]]),
            test_sizes=[100],
            train_loss={"final": 0.25, "per_task": [0.5]},
            timing={"train_seconds": 2.0, "eval_seconds": 0.5, "steps": 1},
            cost={"samples_seen": 100, "memory_bytes": 0},
        )
        for seed, accuracy in zip(seeds, accuracies, strict=True)
    ]
    row = rows_of(root / FOLDER)[0]
    verdict = judge(row.expected, results.runs, measured_on="test")
    results.finish("completed", verdict=verdict)
    text = (root / "made" / "results.json").read_text(encoding="utf-8")
    (root / "made" / "results.json").unlink()
    return text


def ran(place: Path) -> list[str]:
    """Return the commands since last asked."""
    path = place / "commands"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


def recorded(place: Path) -> dict[str, Any]:
    return json.loads((place / FOLDER / RECORDS).read_text(encoding="utf-8"))


def test_each_row_on_each_backend(place, capsys):
    """Short rows first; everything that was measured is kept, and the page written."""
    assert reproduce.main(["--jobs", "1"]) == 0
    commands = ran(place)
    assert [command.split()[:2] for command in commands] == [
        [f"reproductions={PAPER}/{name}", f"backend={backend}"]
        for name in ("short", "long")
        for backend in BACKENDS
    ]
    assert all("seeds_strategy=auto" in command for command in commands)
    records = recorded(place)
    assert {name: sorted(found) for name, found in records.items()} == {
        f"{PAPER}/{name}": ["jax", "torch"] for name in ("long", "short")
    }
    found = records[f"{PAPER}/long"]["jax"]
    assert found["values"] == {"average_accuracy": [0.6, 0.61, 0.62, 0.6, 0.61]}
    assert found["seeds"] == [0, 1, 2, 3, 4] and found["seconds"] == 12.5
    std = 0.01 * 0.7**0.5
    assert found["metrics"]["average_accuracy"] == pytest.approx(
        {"mean": 0.608, "std": std, "half_width": 2.776445 * std / 5**0.5, "seeds": 5}, rel=1e-5
    )
    page = (place / FOLDER / PAGE).read_text(encoding="utf-8")
    assert "| long | average accuracy | 50.00 ± 2.00 | 50.80 ± 1.04 | 60.80 ± 1.04 |" in page
    output = capsys.readouterr().out.splitlines()
    assert output[0] == "0 of 4 measured already" and output[-1].endswith("; 0 failed to run")
    assert output[1].startswith(f"1/4 {PAPER}/short torch: reproduced (")


def test_a_row_that_expects_more_is_measured_again(place):
    """A finished run gives what it was not asked for before; verdicts are by the rows' files."""
    assert reproduce.main(["--only", "*/short", "--backend", "jax"]) == 0
    path = place / FOLDER / PAPER / "short.yaml"
    more = ROW.format(lr=0.1, minutes=1).replace("mean: 0.5,", "mean: 0.6,")
    path.write_text(more + "    average_incremental_accuracy: {mean: 0.7}\n", encoding="utf-8")
    for finished_run in place.glob("runs/*/*/*/*/results.json"):
        finished_run.unlink()
        finished_run.parent.rmdir()
    assert reproduce.main(["--only", "*/short", "--backend", "jax"]) == 0
    assert seeds_of(ran(place)) == ["seed=[0,1,2,3,4]"] * 2 + ["seed=[5,6]"]  # band: 2 x 0.00837
    found = recorded(place)[f"{PAPER}/short"]["jax"]
    assert found["values"]["average_incremental_accuracy"] == ACCURACIES["jax"][:7]
    page = (place / FOLDER / PAGE).read_text(encoding="utf-8")
    assert "in ± 4.00 | reproduced |" in page


def seeds_of(commands: list[str]) -> list[str]:
    return [word for command in commands for word in command.split() if word.startswith("seed=")]


def test_as_many_seeds_as_their_deviation_asks_for(place, capsys):
    """Five, then the rest at once, judged together; the directory keeps its name."""
    (place / "short-jax.json").write_text(finished(place, WIDE), encoding="utf-8")
    command = ["--only", "*/short", "--backend", "jax"]
    assert reproduce.main(command) == 0
    assert seeds_of(ran(place)) == ["seed=[0,1,2,3,4]", "seed=[5,6,7,8,9]"]
    found = recorded(place)[f"{PAPER}/short"]["jax"]
    assert found["seeds"] == list(range(10)) and found["seconds"] == 25.0
    assert found["metrics"]["average_accuracy"]["mean"] == pytest.approx(0.5)
    assert found["values"]["average_accuracy"] == pytest.approx(WIDE[:10])
    names = sorted(path.name for path in place.glob("runs/*/*/short/*") if path.is_dir())
    assert names[1] == f"{names[0]}-5-9"
    assert "1/1 paper2020/short jax: reproduced" in capsys.readouterr().out
    assert reproduce.main(command) == 0
    assert ran(place) == [] and "1 of 1 measured already" in capsys.readouterr().out


def test_earlier_seeds_are_kept(place):
    """A record of three is of the same row: what is left is run, and both commits are named."""
    command = ["--only", "*/short", "--backend", "jax"]
    assert reproduce.main(command) == 0
    path = place / FOLDER / RECORDS
    content = recorded(place)
    found = content[f"{PAPER}/short"]["jax"]
    found |= {"seeds": [0, 1, 2], "values": {"average_accuracy": [0.6, 0.6, 0.63]}, "commit": "c"}
    row = [f"reproductions={PAPER}/short", "backend=jax", "seed=[0,1,2]"]
    found["config_hash"] = hashed(row)
    path.write_text(json.dumps(content), encoding="utf-8")
    ran(place)
    assert reproduce.main(command) == 0
    assert seeds_of(ran(place)) == ["seed=[3,4]"]
    found = recorded(place)[f"{PAPER}/short"]["jax"]
    assert found["values"] == {"average_accuracy": [0.6, 0.6, 0.63, 0.6, 0.61]}
    (earlier,) = found["earlier"]
    assert earlier["seeds"] == [0, 1, 2] and earlier["commit"] == "c"
    assert found["config_hash"] == hashed([*row[:2], "seed=[0,1,2,3,4]"])


def test_a_row_whose_numbers_changed_is_not_measured(place, monkeypatch):
    """A hash with other `numerics`: marked until it is measured again, from the first seed on."""
    command = ["--only", "*/short", "--backend", "jax"]
    assert reproduce.main(command) == 0
    monkeypatch.setitem(VERSION, "numerics", "2")
    (place / "short-jax.json").rename(place / "aside")
    assert reproduce.main(command) == 1
    assert recorded(place)[f"{PAPER}/short"]["jax"]["outdated"] is True
    page = place / FOLDER / PAGE
    assert "| confirmed | jax | 0 | 0 | 0 | 0 | 2 | 0 |" in page.read_text(encoding="utf-8")
    assert "(before its numbers changed)" in page.read_text(encoding="utf-8")
    (place / "aside").rename(place / "short-jax.json")
    ran(place)
    assert reproduce.main(command) == 0
    assert seeds_of(ran(place)) == ["seed=[0,1,2,3,4]"]
    assert "outdated" not in recorded(place)[f"{PAPER}/short"]["jax"]


def test_controls_are_run_beside_their_rows(place, capsys):
    """With what turns the method off; the page judges the row's power by them."""
    path = place / FOLDER / PAPER / "short.yaml"
    text = path.read_text(encoding="utf-8").replace("  num_seeds", "  control: naive\n  num_seeds")
    text = text.replace("optimizer:", "algo: {alpha: 1, size: 2}\noptimizer:")
    path.write_text(text, encoding="utf-8")
    assert reproduce.main(["--only", "*/short", "--backend", "torch", "--jobs", "1"]) == 0
    row, control = (command.split() for command in ran(place))
    assert row[2] == control[5] == "seed=[0,1,2,3,4]"
    assert control[:5] == [*row[:2], "algo=naive", "~algo.alpha", "~algo.size"]
    name = f"{PAPER}/short algo=naive ~algo.alpha ~algo.size"
    assert sorted(recorded(place)) == [f"{PAPER}/short", name]
    assert f"2/2 {name} torch: control measured" in capsys.readouterr().out
    page = (place / FOLDER / PAGE).read_text(encoding="utf-8")
    assert "| reproduced | no | 5 |" in page and "algo=naive" not in page


def test_rows_side_by_side_have_their_seeds_in_turn(place):
    assert reproduce.main(["--jobs", "2"]) == 0
    assert all("seeds_strategy=sequential" in command for command in ran(place))


@pytest.mark.ci
def test_what_was_measured_is_left_out(place, capsys):
    """Until the protocol changes; --again measures it in any case, from the start."""
    assert reproduce.main(["--backend", "jax"]) == 0
    ran(place)
    assert reproduce.main(["--only", f"{PAPER}/short"]) == 0
    (command,) = ran(place)
    assert "backend=torch" in command and "resume=never" not in command
    assert "1 of 2 measured already" in capsys.readouterr().out
    (place / FOLDER / PAPER / "short.yaml").write_text(
        ROW.format(lr=0.2, minutes=1), encoding="utf-8"
    )
    reproduce.Records(place / FOLDER).write_page()
    page = (place / FOLDER / PAGE).read_text(encoding="utf-8")
    assert page.count("(of an earlier protocol)") == 2
    assert reproduce.main([]) == 0
    assert len(ran(place)) == 3  # short on both, and long on PyTorch
    assert "earlier" not in (place / FOLDER / PAGE).read_text(encoding="utf-8")
    for path in place.glob("runs/*/*/*/*/results.json"):
        path.unlink()
        path.parent.rmdir()
    assert reproduce.main(["--only", "*/short", "--backend", "torch", "--again"]) == 0
    (command,) = ran(place)
    assert "resume=never" in command


@pytest.mark.parametrize("how", ["exits", "writes nothing whole", "has no verdict"])
def test_a_row_that_fails_is_told(place, capsys, how):
    """The others are kept; the exit status says so."""
    path = place / "short-torch.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    if how == "exits":
        path.unlink()
    elif how == "writes nothing whole":
        path.write_text(path.read_text(encoding="utf-8")[:-9], encoding="utf-8")
    else:
        path.write_text(json.dumps({**record, "verdict": None}), encoding="utf-8")
    assert reproduce.main(["--jobs", "1"]) == 1
    output = capsys.readouterr().out
    log = f"runs/{FOLDER}/{PAPER}/short/torch-"
    assert f"1/4 {PAPER}/short torch: failed, see {log}" in output
    assert output.endswith("; 1 failed to run\n")
    records = recorded(place)
    assert sorted(records[f"{PAPER}/short"]) == ["jax"] and len(records[f"{PAPER}/long"]) == 2


@pytest.mark.ci
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it(place, number):
    """What runs is told once and waited for, nothing else begins, and the same command goes on."""
    (place / "short-jax.waits").touch()
    process = subprocess.Popen(
        [sys.executable, "-c", IN_A_PROCESS, str(place), str(Path(__file__).parent)],
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in a script's &
    )
    deadline = time.monotonic() + 60
    commands = place / "commands"
    while not commands.exists() or len(commands.read_text(encoding="utf-8").splitlines()) < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == reproduce.INTERRUPTED
    assert errors == "interrupted; the same command continues\n"
    assert output.splitlines()[1].startswith(f"1/4 {PAPER}/short torch: reproduced")
    assert len(ran(place)) == 2, "torch and jax of the first row"
    assert sorted(recorded(place)[f"{PAPER}/short"]) == ["torch"]
    (place / "short-jax.waits").unlink()
    assert reproduce.main(["--jobs", "1"]) == 0
    assert len(ran(place)) == 3


IN_A_PROCESS = """\
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from types import SimpleNamespace
from seqrun.reproductions import __main__ as reproduce
from test_reproduce import hashed
reproduce.ROOT = Path(sys.argv[1])
reproduce.COMMAND = (sys.executable, str(reproduce.ROOT / "run.py"))
reproduce.checked_row = lambda argv: SimpleNamespace(hash=hashed(argv))
sys.exit(reproduce.main(["--jobs", "1"]))
"""
