"""What there is to run: the files of conf/, described by the comments that open them.

`python -m seqrun.cli.listing` (`make list`) prints it, with `--readme FILE` (`make readme`) writes
it into a page; `python run.py --help` shows the names.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.abc import InspectLoader
from importlib.util import find_spec
from pathlib import Path

from seqrun import CONF
from seqrun.checks import BACKENDS

GROUPS = {
    "algo": "algorithms",
    "benchmark": "benchmarks",
    "backbone": "backbones",
    "optimizer": "optimizers",
    "callbacks": "callbacks",
    "logger": "loggers",
    "sweeps": "sweeps",
    "reproductions": "reproductions",
    "experiment": "experiments of your own",
    "debug": "settings to debug with",
}
"""Config group -> heading."""
MARKS = ("<!-- list -->", "<!-- /list -->")
USAGE = """\
Run a continual-learning experiment on PyTorch or JAX.

usage: python run.py [-m] [--dry-run] [group=option ...] [key=value ...]

== Groups: group=option ==
{groups}

== Main keys: key=value ==
backend=torch|jax                which twin of every part is used
seed=0, seed=[0,1,2]             one run, or several with mean and spread
device=auto|cpu|cuda
training.epochs_per_task=1       also .steps_per_task .lr_decay .grad_clip .evaluate_on ...
benchmark.num_tasks=5            also .batch_size .scenario .samples_per_task ...
backbone.width=256               also .n_hidden_layers .dropout .batch_norm
optimizer.lr=0.05                also .momentum .weight_decay .nesterov
algo.ewc_lambda=100              and every other hyper-parameter of the algorithm
data_dir=DIR                     where data sets live; default $SEQRUN_DATA, else ./data
resume=auto|never                continue the run of this config, or start afresh
hydra.run.dir=DIR                the run directory; default runs/<algo>-<benchmark>-<hash>

== Examples ==
python run.py algo=ewc benchmark=rotated_mnist backend=jax
python run.py algo=naive seed=[0,1,2,3,4] optimizer.lr=0.05
python run.py logger=wandb callbacks=early_stopping         one more than the defaults
python run.py logger=[console,tensorboard] callbacks=[]     a list: exactly these; null or []: none
python run.py -m algo=naive,ewc seed=0,1,2                  a directory per combination
python run.py sweeps=seeds algo=ewc                         a checked-in search
python run.py sweeps=seeds algo=ewc --dry-run               what it would run, and how long
python run.py -m seed=0,1,2,3 hydra/launcher=local_processes  on all cores; or =slurm

`python run.py --cfg job` prints the composed experiment with every key, `python run.py
--hydra-help` lists Hydra's own flags. Other first words: `python run.py list` says what each option
is, `explain ALGORITHM` prints its card, `report DIR...` makes tables and a page, `reproduce`
repeats published rows. Once installed, `seqrun` is the same as `python run.py`.
"""


@dataclass(frozen=True)
class Option:
    """An option of a config group.

    Attributes:
        name: as in group=name.
        description: the first line of the comment that opens its file.
        backends: those that have it.
    """

    name: str
    description: str
    backends: tuple[str, ...] = BACKENDS


def usage(conf: Path = CONF) -> str:
    """Return what --help shows."""
    lines = []
    for group in GROUPS:
        names = ", ".join(path_name(conf / group, path) for path in files(conf / group))
        lines.append(f"{group}: {names or '(none)'}")
    return USAGE.format(groups="\n".join(lines))


def options(conf: Path, group: str) -> list[Option]:
    """Return the options of a group; no framework is imported."""
    return [_option(conf / group, path) for path in files(conf / group)]


def files(folder: Path) -> list[Path]:
    """Return the YAML files of a group, nested ones included, in order."""
    return sorted(folder.resolve().rglob("*.yaml")) if folder.is_dir() else []


def path_name(folder: Path, path: Path) -> str:
    """Return the option that `path` is in the group `folder`."""
    return path.relative_to(folder.resolve()).with_suffix("").as_posix()


def _option(folder: Path, path: Path) -> Option:
    text = path.read_text(encoding="utf-8")
    comments = re.findall(r"^# (?!@package)(.*)", text, re.MULTILINE)
    target = re.search(r"^\s*_target_:\s*(\S+)", text, re.MULTILINE)
    return Option(
        path_name(folder, path),
        comments[0] if comments else "",
        _backends_of(target[1]) if target else BACKENDS,
    )


def _backends_of(target: str) -> tuple[str, ...]:
    """Return the backends that have a class: one alone if only that one's module is imported."""
    module, _, name = target.rpartition(".")
    if "${backend}" in module:
        texts = {backend: _source(module.replace("${backend}", backend)) for backend in BACKENDS}
        return tuple(b for b, text in texts.items() if re.search(rf"\b{name}\b", text))
    text = _source(module)
    patterns = {b: rf"^\s*(import|from)\s.*\b{b}\b" for b in BACKENDS}
    found = tuple(b for b, pattern in patterns.items() if re.search(pattern, text, re.MULTILINE))
    return found or BACKENDS


def _source(module: str) -> str:
    """Return the source of a module, which is not imported; "" if there is none."""
    try:
        found = find_spec(module)
    except (ImportError, ValueError):  # a parent that does not exist, or no name
        return ""
    loader = found.loader if found else None
    return (loader.get_source(module) or "") if isinstance(loader, InspectLoader) else ""


def table(conf: Path = CONF) -> str:
    """Return every group's options as a Markdown table."""
    rows = ["| | option | | backends |", "| --- | --- | --- | --- |"]
    for group in GROUPS:
        for place, option in enumerate(options(conf, group)):
            first = f"`{group}=`" if place == 0 else ""
            described = option.description.rstrip(".").replace("|", "\\|")
            backends = ", ".join(option.backends)
            rows.append(f"| {first} | `{option.name}` | {described} | {backends} |")
    return "\n".join(rows)


def with_table(page: str, conf: Path = CONF) -> str:
    """Return a Markdown page with the table between its two marks brought up to date."""
    before, _, rest = page.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    return f"{before}{MARKS[0]}\n{table(conf)}\n{MARKS[1]}{after}"


def main(argv: Sequence[str] = ()) -> int:
    """Write every group's options to stdout, one line each, or into the page `--readme FILE`."""
    if list(argv[:1]) == ["--readme"]:
        page = Path(argv[1])
        page.write_text(with_table(page.read_text(encoding="utf-8")), encoding="utf-8")
        return 0
    for group, heading in GROUPS.items():
        found = options(CONF, group)
        width = max((len(option.name) for option in found), default=0)
        sys.stdout.write(f"{heading} ({group}=...)\n")
        for option in found:
            backends = f" [{', '.join(option.backends)}]" if option.backends else ""
            sys.stdout.write(f"  {option.name:{width}}  {option.description}{backends}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
