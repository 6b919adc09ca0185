"""What README.md and CONTRIBUTING.md promise is so: their very text is run."""

from __future__ import annotations

import contextlib
import io
import pkgutil
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from experiments import CONF, build

import seqrun.algorithms
from seqrun.cli import listing, preflight

ROOT = CONF.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "SECURITY.md",
    ROOT / ".github" / "PULL_REQUEST_TEMPLATE.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]


def blocks(page: str, language: str) -> list[str]:
    """Return the code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def commands(program: str) -> list[list[str]]:
    """Return the arguments of every command of a program in the pages' shell blocks."""
    shown = [block for page in (README, CONTRIBUTING) for block in blocks(page, "sh")]
    split = [shlex.split(line, comments=True) for block in shown for line in block.splitlines()]
    return [words[len(program.split()) :] for words in split if " ".join(words).startswith(program)]


@pytest.mark.ci
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_python_api_runs_as_it_stands(backend: str, tmp_path: Path, monkeypatch):
    """Both backends give the accuracies of the page's code."""
    (code,) = blocks(README, "python")
    script = tmp_path / "script.py"
    script.write_text(code.replace(".torch import", f".{backend} import"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        record = runpy.run_path(str(script))["record"]
    assert record.accuracy_matrix.shape == (4, 3)
    assert "average accuracy" in out.getvalue()
    assert (tmp_path / "runs" / "from-python" / "metrics.jsonl").exists()


def test_table_is_that_of_make_list():
    """`make readme` changes nothing."""
    assert listing.with_table(README) == README, "run `make readme`"
    assert "`ewc`" in listing.table()


def test_make_verbs_exist():
    """Every verb that a page names, and those that CI calls."""
    verbs = set(
        re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    )
    files = [*PAGES, ROOT / ".ci" / "run", *(ROOT / ".github" / "workflows").glob("*.yml")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    named = set(re.findall(r"(?:^|`|run: )make ([a-z-]+)", text, re.MULTILINE))
    assert {"run", "test", "list"} <= named
    assert named <= verbs


def test_experiments_compose(monkeypatch, tmp_path):
    """Every `python run.py` line passes the preflight, the data aside."""
    monkeypatch.setattr(preflight.build, "check_data", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    lines = [line for line in commands("python run.py") if "my_l2" not in " ".join(line)]
    assert len(lines) >= 5
    for line in lines:
        preflight.check(line, CONF)
    assert not list(tmp_path.iterdir())


def test_message_of_a_misspelt_key_is_the_one_shown():
    """The README's example of a refusal."""
    with pytest.raises(preflight.ConfigError) as caught:
        preflight.check(["algo.ewc_lamda=3"], CONF)
    assert f"error: {caught.value}\n" in README


def test_links_lead_somewhere():
    """Relative links, and files named in backquotes with a folder."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_public_names_exist():
    """Every import that docs/public-api.md names in full."""
    page = (ROOT / "docs" / "public-api.md").read_text(encoding="utf-8")
    names = re.findall(r"`(seqrun(?:\.\w+)+)`", page)
    assert len(names) >= 20
    for name in names:
        pkgutil.resolve_name(name)
    for function in re.findall(r"`((?:experiment|preflight|runner)\.\w+)`", page):
        assert callable(pkgutil.resolve_name(f"seqrun:{function}"))


def test_versions_agree():
    """That of the package, of the latest entry in CHANGELOG.md, and of CITATION.cff."""
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    dated = re.findall(r"^## \[(\d\S*)\] - (\d{4}-\d\d-\d\d)$", changelog, re.MULTILINE)
    assert dated[0] == (citation["version"], citation["date-released"])
    assert citation["version"] == seqrun.__version__


def written(folder: Path, suffix: str) -> list[Path]:
    """Write CONTRIBUTING.md's files below a folder and return those with the suffix."""
    paths = []
    for block in blocks(CONTRIBUTING, "python"):
        name = re.match(r"# (\S+\.py)\n", block)
        assert name, "the first line of a block names its file"
        path = folder / name[1]
        path.parent.mkdir(exist_ok=True)
        path.write_text(block, encoding="utf-8")
        paths.append(path)
    return [path for path in paths if path.as_posix().endswith(suffix)]


@pytest.mark.ci
def test_algorithm_in_one_file_runs_from_the_command_line(tmp_path):
    """The file and the command of CONTRIBUTING.md."""
    assert written(tmp_path, "my_l2.py")
    ((*overrides,),) = (c for c in commands("python run.py") if "algo._target_=my_l2.L2" in c)
    small = ["benchmark.num_tasks=2", "benchmark.samples_per_task=50"]
    small.append(f"hydra.run.dir={tmp_path}/run")
    done = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *overrides, *small],
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "results.json").exists()


@pytest.mark.ci
def test_algorithm_of_two_twins_does_what_the_page_says(tmp_path, monkeypatch):
    """0 is naive, more is not, both backends agree, and the YAML block names what the class has."""
    assert len(written(tmp_path, ".py")) == 4
    paths = [*seqrun.algorithms.__path__, str(tmp_path)]
    monkeypatch.setattr(seqrun.algorithms, "__path__", paths)
    from seqrun.algorithms.l2 import jax as on_jax  # type: ignore[import-not-found]
    from seqrun.algorithms.l2 import torch as on_torch

    def final(kind: type, backend: str, **options: float):
        algorithm = build("naive", backend, kind=kind, **options)
        algorithm.fit()
        return algorithm.export_arrays()["params/classifier/kernel"]

    naive = final(None, "torch")
    mine = final(on_torch.L2, "torch", l2_lambda=0.1)
    assert (final(on_torch.L2, "torch", l2_lambda=0.0) == naive).all()
    assert abs(mine - naive).max() > 1e-3
    assert abs(final(on_jax.L2, "jax", l2_lambda=0.1) - mine).max() < 1e-5
    (shown,) = blocks(CONTRIBUTING, "yaml")
    keys = re.findall(r"^(\w+):", shown, re.MULTILINE)
    assert keys == ["_target_", "l2_lambda", "penalty_scale"]
