"""Shell completion offers what a command accepts, and only that."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from seqrun.cli import completion, preflight
from seqrun.cli.listing import CONF


@pytest.fixture
def offered(elsewhere, monkeypatch, capsys) -> Callable[[str], list[str]]:
    """Return what is offered to end a command line."""

    def ask(line: str) -> list[str]:
        monkeypatch.setenv("COMP_LINE", f"run.py {line}")
        monkeypatch.setenv("COMP_POINT", str(len(f"run.py {line}")))
        assert completion.answer("bash")
        return capsys.readouterr().out.split()

    return ask


@pytest.mark.ci
@pytest.mark.parametrize(
    ("line", "some", "none"),
    [
        ("al", ["algo=", "algo.", "allow_targets="], []),
        ("algo=e", ["algo=er", "algo=ewc"], []),
        ("algo=er algo.m", ["algo.memory_size="], []),
        ("optimizer=adam optimizer.", ["optimizer.beta1="], ["optimizer.momentum="]),
        ("training.gr", ["training.grad_clip="], []),
        ("reproductions=hsu2018/class_e", ["reproductions=hsu2018/class_ewc"], []),
        ("hydra/", [], ["hydra/launcher=", "hydra/sweeper"]),
        ("-m hydra/launcher=", ["hydra/launcher=slurm", "hydra/launcher=basic"], []),
        ("hydra.", ["hydra.run."], ["hydra.runtime.", "hydra.overrides.", "hydra.launcher."]),
        ("~", ["~callbacks", "~logger"], ["~algo"]),
    ],
)
def test_what_is_offered(offered, line, some, none):
    found = offered(line)
    assert {*some} <= {*found} and not {*none} & {*found}


@pytest.mark.ci
@pytest.mark.parametrize(
    ("line", "rest"),
    [
        ("algo=", ""),
        ("optimizer=", ""),
        ("logger=", ""),
        ("callbacks=e", " benchmark.validation_fraction=0.1"),
        ("backbone=m", ""),
        ("debug=", ""),
        ("benchmark=split_d", ""),
        ("-m sweeps=seeds hydra/launcher=l", ""),
    ],
)
def test_every_offer_is_accepted(offered, line, rest):
    """Some need another key, too; none is refused for what it is."""
    *before, _ = line.split(" ")
    found = offered(line)
    assert found
    for each in found:
        argv = [*before, each, *rest.split()]
        if each == "algo=icarl":  # needs this scenario
            argv += ["benchmark=split_digits", "benchmark.scenario=class"]
        assert preflight.check(argv, CONF)


def test_a_shell_that_is_not_known(elsewhere, monkeypatch):
    monkeypatch.setenv("COMP_LINE", "run.py al")
    assert not completion.answer("tcsh")
