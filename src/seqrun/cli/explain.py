"""Print an algorithm's card: `python -m seqrun.explain derpp`.

It is read from docstrings, conf/algo and the tests; no framework is imported.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import yaml

from seqrun.checks import ConfigError, one_of
from seqrun.cli.listing import CONF, files, options
from seqrun.training.algorithm import BaseAlgorithm

TESTS = CONF.parent / "tests"
DOCS = CONF.parent / "docs"
FOR_ALL = ("parity", "conformance")
"""Folders of tests that run for every algorithm of conf/algo."""
WIDTH = 96


def card(name: str) -> str:
    """Return the card of an algorithm of conf/algo.

    Raises:
        ConfigError: no such algorithm; the message names the closest match.
    """
    known = {option.name: option for option in options(CONF, "algo")}
    one_of("algorithm", name, sorted(known))
    keys = yaml.safe_load((CONF / "algo" / f"{name}.yaml").read_text(encoding="utf-8"))
    module, _, kind = keys.pop("_target_").rpartition(".")
    package = importlib.import_module(module.removesuffix(".${backend}"))
    found = getattr(package, f"{kind}Options", None)  # naive has no options
    described = (inspect.getdoc(found) or "") if found else known[name].description
    backends = ", ".join(known[name].backends)
    page = DOCS / "algorithms" / f"{name}.md"
    parts = [
        f"{name} [{backends}]",
        described.partition("\n\n")[0],
        inspect.getdoc(package) or "",
        _hyper_parameters(found, keys),
        _needs(found),
        _verified(name, package.__name__.rpartition(".")[2], _traits(found)),
        f"More: {page.relative_to(CONF.parent)}" if page.is_file() else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _hyper_parameters(found: type | None, shipped: dict[str, Any]) -> str:
    """Return the hyper-parameters with their shipped values and meanings."""
    if found is None or not dataclasses.is_dataclass(found):
        return "Hyper-parameters: none."
    meanings = _meanings(found)
    lines = ["Hyper-parameters (algo.<key>=<value>), as shipped:"]
    given = {field.name for field in dataclasses.fields(BaseAlgorithm)}
    for field in dataclasses.fields(found):
        if not field.init or field.name in given:
            continue
        value = shipped.get(field.name, field.default)
        lines.append(f"  {field.name} = {_as_yaml(value)}")
        lines += _wrapped(meanings.get(field.name, ""), 6, 6)
    return "\n".join(lines)


def _as_yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()


def _meanings(found: type) -> dict[str, str]:
    """Return argument -> meaning, from the docstrings of a class and its parents."""
    meanings: dict[str, str] = {}
    for kind in reversed(found.__mro__):
        _, _, section = (inspect.cleandoc(kind.__doc__ or "")).partition("\nArgs:\n")
        name = ""
        for line in section.splitlines():
            if line and not line.startswith(" "):
                break
            start = re.match(r"    (\w+(?:, \w+)*): (.*)", line)
            if start:
                name = start[1]
                meanings[name] = start[2]
            elif line.strip():
                meanings[name] += " " + line.strip()
    return {name: text for names, text in meanings.items() for name in names.split(", ")}


def _needs(found: type | None) -> str:
    """Return the scenarios that the algorithm needs and why, or "" if it runs in any."""
    scenarios = getattr(found, "scenarios", ())
    if not scenarios or scenarios == BaseAlgorithm.scenarios:
        return ""
    reason = str(getattr(found, "scenarios_reason", "")).removeprefix("which ")
    return f"Needs: benchmark.scenario={' or '.join(scenarios)}, for it {reason}."


def _verified(name: str, folder: str, traits: Collection[str]) -> str:
    """Return the tests of the algorithm or its family, and those of all algorithms that apply."""
    if not TESTS.is_dir():
        return ""
    own = [TESTS / "algorithms" / f"test_{stem}.py" for stem in dict.fromkeys((name, folder))]
    found = {path: _tests(path) for path in own if path.is_file()}
    for suite in FOR_ALL:
        for path in (TESTS / suite).glob("test_*.py"):
            found[path] = _tests(path, of_all=True, traits=traits)
    lines = ["Verified:"]
    for path in sorted(found):
        tests = found[path]
        if tests:
            lines.append(f"  {path.relative_to(CONF.parent)}")
        for test, summary in tests:
            lines += _wrapped(f"{test}: {summary}" if summary else test, 4, 6)
    return "\n".join(lines)


def _wrapped(text: str, first: int, others: int) -> list[str]:
    """Return the lines of a text, the first one and the others indented by so many spaces."""
    return textwrap.wrap(text, WIDTH, initial_indent=" " * first, subsequent_indent=" " * others)


def _traits(found: type | None) -> set[str]:
    """Return the traits of an algorithm, on which some tests of all algorithms depend."""
    traits = {"a_penalty"} if hasattr(found, "coefficient_name") else set()
    if len(getattr(found, "batch_names", ())) > 1:
        traits.add("replay")
    return traits


def _tests(
    path: Path, *, of_all: bool = False, traits: Collection[str] = ()
) -> list[tuple[str, str]]:
    """Return the name and the first docstring line of each test of a file.

    Args:
        path: the file.
        of_all: whether to return only tests that run for all algorithms, by an argument `algo`.
        traits: the algorithm's traits; the decorator `with_<trait>` of a test requires one.
    """
    found = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.FunctionDef) or not node.name.startswith("test_"):
            continue
        decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
        required = {d.removeprefix("with_") for d in decorators if d.startswith("with_")}
        if of_all and not required <= set(traits):
            continue
        if not of_all or "algo" in [argument.arg for argument in node.args.args]:
            summary = (ast.get_docstring(node) or "").split("\n")[0]
            found.append((node.name.removeprefix("test_").replace("_", " "), summary))
    return found


def main(argv: Sequence[str]) -> int:
    """Write the card of the named algorithm to stdout; return the exit status."""
    if len(argv) != 1 or argv[0] in ("-h", "--help"):
        names = ", ".join(path.stem for path in files(CONF / "algo"))
        usage = f"usage: python -m seqrun.explain <algorithm>\nalgorithms: {names}\n"
        is_help = len(argv) == 1
        (sys.stdout if is_help else sys.stderr).write(usage)
        return 0 if is_help else 2
    try:
        sys.stdout.write(card(argv[0]))
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0
