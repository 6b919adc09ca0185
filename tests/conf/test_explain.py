"""`python -m seqrun.explain` prints cards without waiting for a framework."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest
import yaml

from seqrun.cli import explain
from seqrun.cli.listing import CONF, files

NAMES = [path.stem for path in files(CONF / "algo")]


@pytest.mark.parametrize("name", NAMES)
def test_card_says_everything(name: str):
    """It has backends, paper, every key of the YAML file with a meaning, and tests that exist."""
    shown = explain.card(name)
    lines = shown.splitlines()
    assert lines[0].startswith(f"{name} [")
    assert "Paper: " in shown
    keys = yaml.safe_load((CONF / "algo" / f"{name}.yaml").read_text(encoding="utf-8"))
    for key, value in keys.items():
        if key != "_target_":
            (place,) = (i for i, line in enumerate(lines) if line.startswith(f"  {key} = "))
            assert yaml.safe_load(lines[place].split(" = ", 1)[1]) == value
            assert lines[place + 1].startswith("      "), f"{key} has no meaning"
    for line in lines:
        if line.startswith("  tests/"):
            assert (CONF.parent / line.strip()).is_file()
    assert max(map(len, lines)) <= 100


def test_card_of_ewc():
    """It has inherited arguments too, and conf/'s value rather than the class's default."""
    shown = explain.card("ewc")
    meaning = "strength lambda of the penalty, >= 0; 0 is naive (with `clip` = None)."
    assert f"\n  ewc_lambda = 30.0\n      {meaning}\n" in shown
    assert "1612.00796" in shown and "ewc [torch, jax]" in shown
    assert "\n  penalty_scale = 0.5\n" in shown and "\n  fisher_samples = null\n" in shown
    assert "twins agree at every step" in shown
    assert "Needs: benchmark.scenario=class, for it learns" in explain.card("icarl")


def test_a_replay_method_lists_the_tests_of_memories():
    told = {name: " ".join(explain.card(name).split()) for name in ("er", "derpp", "ewc")}
    line = "memory keeps within its budget and is replayed"
    assert {name: line in text for name, text in told.items()} == {
        "er": True,
        "derpp": True,
        "ewc": False,
    }


def test_a_member_of_a_family_shows_its_own_hyper_parameters():
    assert "\n  beta = " in explain.card("derpp")
    assert "\n  beta = " not in explain.card("der")


def test_verified_names_every_test_of_the_algorithm(tmp_path):
    """And of the shared tests, those that run for every algorithm."""
    path = CONF.parent / "tests" / "algorithms" / "test_icarl.py"
    nodes = ast.parse(path.read_text(encoding="utf-8")).body
    tests = [n.name for n in nodes if isinstance(n, ast.FunctionDef) and n.name[:5] == "test_"]
    assert len(explain._tests(path)) == len(tests) > 5
    shared = tmp_path / "test_x.py"
    shared.write_text(
        'def test_a_b(algo):\n    """Told."""\ndef test_c(): pass\ndef no(): pass\n',
        encoding="utf-8",
    )
    assert explain._tests(shared) == [("a b", "Told."), ("c", "")]
    assert explain._tests(shared, of_all=True) == [("a b", "Told.")]


@pytest.mark.ci
def test_no_framework_is_imported():
    code = (
        "import sys; from seqrun import explain; explain.main(['derpp'])\n"
        "sys.exit(bool({'torch', 'jax', 'flax', 'hydra'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("derpp [torch, jax]")


def test_unknown_name_gets_the_nearest(capsys):
    assert explain.main(["derp"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: algorithm='derp': must be one of agem, ")
    assert said.err.endswith("(did you mean derpp?)\n")


def test_usage(capsys):
    assert explain.main([]) == 2
    assert "usage: " in capsys.readouterr().err
    assert explain.main(["--help"]) == 0
    assert "icarl" in capsys.readouterr().out
