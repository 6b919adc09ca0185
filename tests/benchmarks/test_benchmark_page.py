"""The keys and commands in docs/benchmarks.md are correct."""

from __future__ import annotations

import re
import shlex

import pytest
import yaml
from experiments import CONF, component

PAGE = (CONF.parent / "docs" / "benchmarks.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line)[2:] for line in PAGE.splitlines() if line.startswith("python run.py ")
]


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words)[10:60])
def test_commands_of_protocols_are_accepted(words):
    """Every override is of a key that the benchmark has, with a value that it takes."""
    given = dict(word.split("=", 1) for word in words)
    kind, keys = component("benchmark", given.pop("benchmark"), "torch")
    changed = {key.removeprefix("benchmark."): yaml.safe_load(v) for key, v in given.items()}
    assert set(changed) <= set(keys)
    assert all(keys[key] != value for key, value in changed.items())
    kind(**keys | changed)


@pytest.mark.parametrize("name", ["rotated_mnist", "permuted_mnist", "split_mnist"])
def test_every_key_is_listed_with_its_default(name):
    """In a table's row that begins with the key; defaults in words are not compared."""
    rows = dict(re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| ([^|]*) \|", PAGE, re.MULTILINE))
    listed = {key: default for keys, default in rows.items() for key in re.findall(r"\w+", keys)}
    for key, value in component("benchmark", name, "torch")[1].items():
        words = listed[key].replace("`", "").split()
        if key not in ("num_tasks", "scenario", "data_dir"):
            assert yaml.safe_load(words[0]) == value, key
