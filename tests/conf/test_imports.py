"""Imports go one way: who may import what (docs/architecture.md)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from seqrun.listing import CONF

ROOT = CONF.parent

SOURCE = ROOT / "src"
FILES = sorted((SOURCE / "seqrun").rglob("*.py"))
HYDRA = {"config.py", "preflight.py", "runner.py"}
TOP = HYDRA | {"experiment.py", "explain.py", "jobs.py", "reproduce.py", "run_directory.py"}
TORCH, JAX = {"torch"}, {"jax", "jaxlib", "flax", "optax"}
UPPER = tuple(f"seqrun.{Path(name).stem}" for name in (*TOP, "listing.py"))
LAZY = {"torchvision", "matplotlib", "rich", "tqdm", "sklearn", "wandb", "comet_ml", "optuna"}


def imports(source: str, *, top_level: bool = False) -> set[str]:
    """Return the modules that a source imports, without those for type checkers only."""
    tree = ast.parse(source)
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    if top_level:
        skipped |= {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            for inner in ast.walk(node)
        }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def packages(path: Path, **options: bool) -> set[str]:
    return {name.split(".")[0] for name in imports(path.read_text(), **options)}


def name_of(path: Path) -> str:
    return path.relative_to(SOURCE / "seqrun").as_posix()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_frameworks(path):
    used = packages(path)
    if path.name != "torch.py":
        assert not used & TORCH
    if path.name != "jax.py":
        assert not used & JAX
    if path.name not in ("torch.py", "jax.py"):
        twins = {m for m in imports(path.read_text()) if {"torch", "jax"} & set(m.split(".")[1:])}
        assert not twins, "a framework-free module would import a framework through these"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_twins_never_import_the_other_framework(path):
    other = {"torch.py": "jax", "jax.py": "torch"}.get(path.name)
    modules = imports(path.read_text())
    assert not {m for m in modules if m.startswith("seqrun.") and other in m.split(".")}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_hydra_stays_at_the_top(path):
    if name_of(path) not in HYDRA:
        assert not packages(path) & {"hydra", "omegaconf"}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_below_imports_what_is_above(path):
    name, modules = name_of(path), imports(path.read_text())
    if name not in TOP:
        assert not {m for m in modules if m.startswith(UPPER)}
    if name.startswith("algorithms/"):
        allowed = ("seqrun.loggers.base.", "seqrun.loggers.BaseLogger", "seqrun.loggers.RunInfo")
        loggers = {m for m in modules if m.startswith("seqrun.loggers")}
        assert not {m for m in loggers if not m.startswith(allowed)}, "the interface alone"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_heavy_packages_wait_until_they_are_used(path):
    assert not packages(path, top_level=True) & LAZY


def test_the_rules_can_fail():
    assert imports("def f():\n    import torch.nn\n") == {"torch.nn"}
    assert imports("def f():\n    import torch\n", top_level=True) == set()
    assert imports("if TYPE_CHECKING:\n    from hydra import x\n") == set()
    assert imports("from seqrun import runner\n") == {"seqrun.runner"}
