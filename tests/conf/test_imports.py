"""Imports go one way: who may import what (docs/architecture.md)."""

from __future__ import annotations

import ast
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

import seqrun
from seqrun.cli.listing import CONF

ROOT = CONF.parent

SOURCE = ROOT / "src"
FILES = sorted((SOURCE / "seqrun").rglob("*.py"))
HYDRA = {"config", "cli", "runs"}
"""Rooms that may import Hydra."""
TORCH, JAX = {"torch"}, {"jax", "jaxlib", "flax", "optax"}
LAZY = {
    "matplotlib",
    "rich",
    "tqdm",
    "sklearn",
    "pooch",
    "requests",
    "torchvision",
    "wandb",
    "comet_ml",
    "optuna",
}

ORDER: list[tuple[str, ...]] = [
    ("__init__", "__main__", "explain", "cli"),
    ("reproductions", "report", "sweeps"),
    ("runs",),
    ("config",),
    ("callbacks", "algorithms"),
    ("training",),
    ("loggers",),
    ("records",),
    ("evaluation",),
    ("benchmarks", "backbones", "optimizers"),
    ("memory", "formulas"),
    ("plan", "checks", "files", "system"),
]
"""Rooms from the top to the bottom: one may import those of its own line and of lines below."""


parsed = cache(ast.parse)


def imports(source: str, *, top_level: bool = False, types: bool = False) -> set[str]:
    """Return the modules that a source imports.

    Args:
        source: the source of a module.
        top_level: whether to leave out imports inside functions.
        types: whether to include imports that are for type checkers only.
    """
    tree = parsed(source)
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if not types and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
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


def by_name(source: str) -> set[str]:
    """Return the modules that a source imports by `import_module` or `__import__`, by a literal."""
    calls = (node for node in ast.walk(parsed(source)) if isinstance(node, ast.Call))
    importing = (c for c in calls if ast.unparse(c.func).endswith(("import_module", "__import__")))
    given = (arg for c in importing for arg in (*c.args[:1], *(k.value for k in c.keywords)))
    return {
        arg.value for arg in given if isinstance(arg, ast.Constant) and isinstance(arg.value, str)
    }


def modules_of(path: Path, **options: bool) -> set[str]:
    return imports(path.read_text(encoding="utf-8"), **options)


def packages(path: Path, **options: bool) -> set[str]:
    return {name.split(".")[0] for name in modules_of(path, **options)}


def name_of(path: Path) -> str:
    return path.relative_to(SOURCE / "seqrun").as_posix()


def module_of(path: Path, source: Path = SOURCE) -> str:
    """Return the dotted name of a module's file."""
    parts = path.relative_to(source).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def graph(source: Path = SOURCE, package: str = "seqrun") -> dict[str, set[str]]:
    """Return module -> modules of seqrun that it imports, also for types and in functions.

    That includes modules that `from seqrun import <name>` finds by an earlier name, and those whose
    full name `import_module` is given.
    """
    files = {module_of(p, source): p for p in (source / package).rglob("*.py")}
    found: dict[str, set[str]] = {}
    for module, path in files.items():
        names = imports(path.read_text(encoding="utf-8"), types=True) | by_name(
            path.read_text(encoding="utf-8")
        )
        names = {seqrun._MOVED.get(name.removeprefix(f"{package}."), name) for name in names}
        targets = {name if name in files else name.rpartition(".")[0] for name in names}
        found[module] = {t for t in targets if t in files and t != module}
    return found


def through_packages(arrows: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return the arrows with those that importing a module within a package implies.

    Python runs the `__init__` of every package around a module first; that of a package around the
    importing module has been run.
    """

    def packages_of(module: str) -> set[str]:
        parts = module.split(".")
        return {".".join(parts[:n]) for n in range(2, len(parts))}

    return {
        module: others
        | set().union(*(packages_of(o) - packages_of(module) for o in others)) - {module}
        for module, others in arrows.items()
    }


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that import each other, directly or not."""
    reach = {module: set(others) for module, others in arrows.items()}
    for _ in reach:
        wider = {m: set().union(others, *(reach[o] for o in others)) for m, others in reach.items()}
        if wider == reach:
            break
        reach = wider
    mutual = {m: {o for o in reach[m] if m in reach[o]} for m in reach if m in reach[m]}
    return sorted({tuple(sorted(group)) for group in mutual.values()})


def room(module: str) -> str:
    """Return the room that a module is in."""
    return (module.split(".") + ["__init__"])[1]


def upwards(arrows: dict[str, set[str]]) -> list[str]:
    """Return "module -> module" of every import against the order."""
    rank = {name: place for place, names in enumerate(ORDER) for name in names}
    return sorted(
        f"{module} -> {other}"
        for module, others in arrows.items()
        for other in others
        if other != "seqrun" and rank[room(other)] < rank[room(module)]
    )


def test_every_room_has_its_place():
    assert {room(module) for module in graph()} == {name for names in ORDER for name in names}


@pytest.mark.ci
def test_nothing_imports_upwards():
    assert upwards(graph()) == []


@pytest.mark.ci
def test_no_circles():
    assert circles(through_packages(graph())) == []


def test_few_files_are_in_no_room():
    assert len(list((SOURCE / "seqrun").glob("*.py"))) <= 6


def offenders(found: Callable[[Path], set[str]]) -> dict[str, set[str]]:
    """Return the file -> what it must not import, of all files that import such modules."""
    return {name_of(path): modules for path in FILES if (modules := found(path))}


@pytest.mark.ci
def test_frameworks():
    """A framework-free file imports neither framework, nor a file that does."""

    def found(path: Path) -> set[str]:
        used = packages(path)
        wrong = used & TORCH if path.name != "torch.py" else set()
        wrong |= used & JAX if path.name != "jax.py" else set()
        if path.name in ("torch.py", "jax.py"):
            return wrong
        return wrong | {m for m in modules_of(path) if {"torch", "jax"} & set(m.split(".")[1:])}

    assert offenders(found) == {}


@pytest.mark.ci
def test_twins_never_import_the_other_framework():
    def found(path: Path) -> set[str]:
        other = {"torch.py": "jax", "jax.py": "torch"}.get(path.name)
        return {m for m in modules_of(path) if m.startswith("seqrun.") and other in m.split(".")}

    assert offenders(found) == {}


@pytest.mark.ci
def test_hydra_stays_at_the_top():
    def found(path: Path) -> set[str]:
        used = packages(path) & {"hydra", "omegaconf"}
        return set() if room(module_of(path)) in HYDRA else used

    assert offenders(found) == {}


def test_algorithms_know_loggers_by_their_interface():
    allowed = ("seqrun.loggers.base.", "seqrun.loggers.BaseLogger", "seqrun.loggers.RunInfo")

    def found(path: Path) -> set[str]:
        if not name_of(path).startswith("algorithms/"):
            return set()
        loggers = {m for m in modules_of(path) if m.startswith("seqrun.loggers")}
        return {m for m in loggers if not m.startswith(allowed)}

    assert offenders(found) == {}


SHARED = {"base", "regularization", "replay"}
"""Folders of algorithms/ that every algorithm may import."""


def foreign(module: str, others: set[str]) -> set[str]:
    """Return what an algorithm imports of other algorithms and of callbacks."""
    own = module.split(".")[2:3]
    return {
        other
        for other in others
        if other.startswith("seqrun.callbacks")
        or (other.startswith("seqrun.algorithms.") and other.split(".")[2] not in (*own, *SHARED))
    }


@pytest.mark.ci
def test_algorithms_import_no_other_and_no_callback():
    """What several share is in base, regularization, replay, memory or formulas."""
    arrows = {m: others for m, others in graph().items() if m.startswith("seqrun.algorithms.")}
    assert {m: found for m, others in arrows.items() if (found := foreign(m, others))} == {}


@pytest.mark.ci
def test_heavy_packages_wait_until_they_are_used():
    assert offenders(lambda path: packages(path, top_level=True) & LAZY) == {}


def test_the_rules_can_fail(tmp_path):
    assert imports("def f():\n    import torch.nn\n") == {"torch.nn"}
    assert imports("def f():\n    import torch\n", top_level=True) == set()
    assert imports("if TYPE_CHECKING:\n    from hydra import x\n") == set()
    assert imports("if TYPE_CHECKING:\n    from hydra import x\n", types=True) == {"hydra.x"}
    assert imports("from seqrun import runner\n") == {"seqrun.runner"}
    (tmp_path / "seqrun" / "files").mkdir(parents=True)
    (tmp_path / "seqrun" / "files" / "a.py").write_text(
        "def f():\n    from seqrun.cli import b\n", encoding="utf-8"
    )
    (tmp_path / "seqrun" / "cli").mkdir()
    (tmp_path / "seqrun" / "cli" / "b.py").write_text(
        "if TYPE_CHECKING:\n    import seqrun.files.a\n", encoding="utf-8"
    )
    (tmp_path / "seqrun" / "files" / "c.py").write_text(
        "def f():\n    from seqrun import runner\n    import_module('seqrun.cli.b')\n",
        encoding="utf-8",
    )
    (tmp_path / "seqrun" / "runs").mkdir()
    (tmp_path / "seqrun" / "runs" / "runner.py").write_text("", encoding="utf-8")
    drawn = graph(tmp_path)
    assert upwards({"seqrun.files.c": drawn.pop("seqrun.files.c")}) == [
        "seqrun.files.c -> seqrun.cli.b",
        "seqrun.files.c -> seqrun.runs.runner",
    ]
    assert upwards(drawn) == ["seqrun.files.a -> seqrun.cli.b"]
    assert circles(drawn) == [("seqrun.cli.b", "seqrun.files.a")]
    assert by_name("__import__('a.b'); import_module(name='c'); import_module(d)") == {"a.b", "c"}
    through_init = {"seqrun.a": {"seqrun.b.c"}, "seqrun.a.d": set(), "seqrun.b": {"seqrun.a.d"}}
    through_init |= {"seqrun.b.c": set()}
    assert circles(through_init) == []
    assert circles(through_packages(through_init)) == [("seqrun.a", "seqrun.b")]
    kcl, er = "seqrun.algorithms.kcl.torch", "seqrun.algorithms.er.torch"
    assert foreign(er, {kcl, er, "seqrun.algorithms.base.torch", "seqrun.callbacks.memory"}) == {
        kcl,
        "seqrun.callbacks.memory",
    }
