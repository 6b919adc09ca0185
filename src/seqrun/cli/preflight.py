"""Everything that can be wrong with a command, found before Hydra touches the disk.

Every experiment that the command describes is composed, checked and built (without data), and
its data are looked for. The first thing wrong ends the command with one message.
"""

from __future__ import annotations

import itertools
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    IntervalSweep,
    Override,
    QuotedString,
)
from hydra.errors import (
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from seqrun.config import build as experiment
from seqrun.config import trust as yaml_files
from seqrun.checks import ConfigError, first_line, nearest, writable
from seqrun.config.schema import GROUPS, config_hash, dotted_keys, plain, register, seeds_of
from seqrun.sweeps.dry_run import Preview, preview
from seqrun.records.locks import refuse_locked
from seqrun.config.secrets import names_secret
from seqrun.records.results import RecordError
from seqrun.runs.directory import is_done, set_aside
from seqrun.training.limits import planned_samples
from seqrun.sweeps.validation import held_out

BAD_INPUT = 2
"""Exit code."""
TYPES = {"Float": "a number", "Integer": "an integer", "Boolean": "true or false"}
NEED_MULTIRUN = ("hydra/launcher", "hydra.launcher", "hydra/sweeper", "hydra.sweeper", "sweeps")
FILE_GROUPS = ("sweeps", "reproductions")
OF_FILES = ("mode", "sweeper")
OF_HYDRA = ("overrides", "runtime")
"""Keys of Hydra's node that a file may set, and those that Hydra itself sets."""
SEARCH = "hydra_plugins.seqrun.search.OptunaSweeper"
OF_SWEEPER = ("params", "direction", "n_trials", "n_jobs", "sampler", "study_name")
"""Keys of a sweeper that a file may set; others name functions to call and places to write to."""
FROM_VARIABLE = re.compile(r"\$\{oc\.env:SEQRUN_\w+\}")
KEY = re.compile(r"[+~]*\w+(\.\w+)*")
"""Of an experiment; others than these choose files, or say where what they hold goes."""
NOT_SEARCHED = ("hydra", "allow_targets", *FILE_GROUPS)
SAMPLER = re.compile(r"(optuna\.samplers|hydra_plugins\.seqrun\.\w+)\.[A-Z]\w*Sampler\w*")


@dataclass(frozen=True)
class Job:
    """One experiment of a command.

    Attributes:
        config: plain resolved experiment.
        hash: its config hash.
        directory: the run directory; None where only the launcher will know it.
        overrides: what makes it this job of a multirun.
        trials: of the search that the job is an example of; None = it is a job itself.
        is_alone: whether it is the one run of a command without -m.
    """

    config: dict[str, Any]
    hash: str
    directory: Path | None
    overrides: tuple[str, ...] = ()
    trials: int | None = None
    is_alone: bool = False


def main(argv: Sequence[str], config_dir: str | Path, *, dry_run: bool = False) -> int:
    """Check the command line; return 0, or write one message to stderr and return BAD_INPUT.

    Args:
        argv: arguments of run.py.
        config_dir: where conf/ is.
        dry_run: print the jobs and touch nothing.
    """
    try:
        jobs = check(argv, config_dir)
        if dry_run:
            show(jobs)
        elif len(jobs) == 1 and jobs[0].is_alone:  # before Hydra writes its record there
            refuse_locked(jobs[0].directory)
            if jobs[0].config["resume"] == "never":
                set_aside(jobs[0].directory)
    except (ConfigError, RecordError) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        remedy = "; resume=never moves it aside" if isinstance(error, RecordError) else ""
        sys.stderr.write(f"error: {error}{remedy}\n")
        return BAD_INPUT
    return 0


def check(argv: Sequence[str], config_dir: str | Path) -> list[Job]:
    """Return the jobs that the command line describes, checked; [] if it only asks for help.

    Raises:
        ConfigError: the first thing wrong.
        RecordError: the run directory holds a record that cannot be read.
    """
    register()
    args, unknown = get_args_parser().parse_known_args(list(argv))
    if unknown:
        raise ConfigError(f"{' '.join(unknown)}: no such flag, or a flag stands after an override")
    if args.help or args.hydra_help or args.shell_completion or args.experimental_rerun:
        return []
    if args.multirun and (args.cfg or args.info):
        raise ConfigError(
            "--multirun: must not stand with --cfg or --info, which show one experiment; --dry-run "
            "shows the jobs"
        )
    overrides = list(args.overrides)
    if args.config_dir:
        if not os.path.isdir(args.config_dir):
            raise ConfigError(f"--config-dir={args.config_dir}: must be a directory")
        overrides.append(f"hydra.searchpath=[file://{os.path.abspath(args.config_dir)}]")
        yaml_files.check(Path(args.config_dir), (*GROUPS, *FILE_GROUPS, "hydra"))
    directory = os.path.abspath(args.config_path or config_dir)
    if any(group in override for override in overrides for group in FILE_GROUPS):
        yaml_files.check(Path(directory), FILE_GROUPS)
    name = args.config_name or "config"
    with initialize_config_dir(version_base="1.3", config_dir=directory, job_name="run"):
        if args.cfg or args.info:
            parsed = _parse(overrides)
            _refuse_empty_groups(parsed)
            _compose(name, [_line(o) for o in parsed if not o.is_sweep_override()])
            return []
        jobs = list(_jobs(name, overrides, multirun=args.multirun))
    for job in jobs:
        if job.directory is None or not is_done(job.directory, job.config):
            experiment.check_data(job.config)
    return jobs


def _jobs(name: str, overrides: list[str], *, multirun: bool) -> Iterator[Job]:
    """Yield every experiment of the command: one, or those of a grid."""
    parsed = _parse(overrides)
    fixed = [_line(o) for o in parsed if not o.is_sweep_override()]
    _refuse_empty_groups(parsed)
    said = list(fixed)
    base = _compose(name, fixed)
    _check_files(base, name, said, said)
    if not multirun and base.hydra.mode != RunMode.MULTIRUN:
        _refuse_sweep(parsed)
        config = _checked(base)
        digest = config_hash(config)
        try:
            directory = str(base.hydra.run.dir)
        except OmegaConfBaseException as error:
            raise ConfigError(f"hydra.run.dir: {_resolution(error)}") from None
        if not directory.strip():
            raise ConfigError("hydra.run.dir=: must be a directory")
        writable("hydra.run.dir", directory)
        yield Job(config, digest, Path(directory).absolute(), is_alone=True)
        return
    if not OmegaConf.is_dict(base.hydra.sweeper):
        raise ConfigError(f"hydra.sweeper={base.hydra.sweeper}: must be a node")
    _check_plugins(base)
    seen: dict[str, str] = {}
    if base.hydra.sweeper._target_ == SEARCH:
        params = OmegaConf.select(base, "hydra.sweeper.params") or {}
        keys = [*params, *(o.get_key_element() for o in parsed)]
        fixed += [f"{key}={value}" for key, value in held_out(base, keys).items()]
    grid = str(base.hydra.sweeper._target_).endswith(("BasicSweeper", "GridSweeper"))
    swept = {o.get_key_element() for o in parsed if o.is_sweep_override()}
    for point in _points(parsed, base, grid=grid):
        cfg = _compose(name, given := [*fixed, *point])
        if any(_brings_a_file(o.split("=")[0]) for o in point):
            own = [o for o in point if o.split("=")[0] in swept]
            _check_files(cfg, name, [*said, *own], given)
        config = _checked(cfg)
        digest = config_hash(config)
        told = " ".join(point) or "the experiment"
        if grid and digest in seen:
            raise ConfigError(f"{told}: the same experiment as {seen[digest]} of this multirun")
        seen[digest] = told
        trials = None if grid else OmegaConf.select(base, "hydra.sweeper.n_trials")
        yield Job(config, digest, _directory(cfg), tuple(point), trials)


def show(jobs: Sequence[Job]) -> None:
    """Print the jobs of a command, which of them are done, and about how long the others take."""
    samples: dict[str, int] = {}
    previews = []
    for job in jobs:
        seeds = seeds_of(job.config)
        algorithm = experiment.build(job.config, seeds[0])
        stream = str((job.config["benchmark"], job.config["training"]["epochs_per_task"]))
        if stream not in samples:  # data are loaded once for all jobs of a stream
            samples[stream] = planned_samples(algorithm)
        previews.append(
            Preview(
                overrides=job.overrides,
                directory=job.directory,
                name=algorithm.names,
                samples=samples[stream] * len(seeds),
                is_done=bool(job.directory and is_done(job.directory, job.config)),
            )
        )
    trials = jobs[0].trials if jobs else None
    sys.stdout.write("\n".join(preview(previews, trials=trials)) + "\n")


def _directory(cfg: DictConfig) -> Path | None:
    """Return the directory of a job of a grid; None if it hangs on what the launcher will say."""
    try:
        return Path(cfg.hydra.sweep.dir, str(cfg.hydra.sweep.subdir)).absolute()
    except (OmegaConfBaseException, TypeError):
        return None


def _refuse_secrets(node: Any, key: str = "", *, is_secret: bool = False) -> None:
    """Raise ConfigError if a secret stands where Hydra will record it in plain text.

    Args:
        node: unresolved.
        key: where it stands.
        is_secret: whether a key above it says that it is one.
    """
    if isinstance(node, Mapping):
        for name, value in node.items():
            below = f"{key}.{name}" if key else str(name)
            _refuse_secrets(value, below, is_secret=is_secret or names_secret(str(name)))
    elif isinstance(node, list):
        for place, value in enumerate(node):
            _refuse_secrets(value, f"{key}[{place}]", is_secret=is_secret)
    elif is_secret and node not in (None, "") and not FROM_VARIABLE.fullmatch(str(node)):
        raise ConfigError(
            f"{key}: a secret would be recorded in plain text: put it into an environment "
            "variable SEQRUN_<NAME> and give ${oc.env:SEQRUN_<NAME>} here"
        )


def _checked(cfg: DictConfig) -> dict[str, Any]:
    """Return the plain experiment after building all its parts."""
    _refuse_secrets(OmegaConf.to_container(cfg, resolve=False))
    try:
        config = plain(cfg)
    except OmegaConfBaseException as error:
        key = f"{error.full_key}: " if error.full_key else ""
        raise ConfigError(f"{key}{_resolution(error)}") from None
    experiment.check(config)
    return config


def _refuse_empty_groups(parsed: Sequence[Override]) -> None:
    """Raise ConfigError if a group is given no option, or what cannot be a name of one."""
    for override in parsed:
        key = override.get_key_element().lstrip("+~")
        if key.split("@")[0] in FILE_GROUPS and _names_lists(override):
            raise ConfigError(f"{_line(override)}: must be one, and no list")
        if override.is_sweep_override():
            continue
        if not override.is_delete() and isinstance(override.value(), (str, QuotedString, list)):
            continue
        if key in ("callbacks", "logger"):
            raise ConfigError(f"{_line(override)}: must be a list; {key}=[] takes none")
        if key in GROUPS:
            raise ConfigError(f"{_line(override)}: must be one of {', '.join(_options(key))}")


def _names_lists(override: Override) -> bool:
    """Return whether a value, or one of those of a sweep, is a list."""
    value = override.value()
    values = value.list if isinstance(value, ChoiceSweep) else [value]
    return any(isinstance(each, list) for each in values)


# ---- multirun


def _refuse_sweep(parsed: Sequence[Override]) -> None:
    """Raise ConfigError if an override means something to a multirun only."""
    for override in parsed:
        key, line = override.get_key_element().lstrip("+~"), _line(override)
        if override.is_sweep_override():
            values = line.split("=", 1)[1]
            hint = f"; one run over several seeds is seed=[{values}]" if key == "seed" else ""
            raise ConfigError(f"{line}: several values need -m (python run.py -m ...){hint}")
        if any(key == k or key.startswith(f"{k}.") for k in NEED_MULTIRUN):
            raise ConfigError(f"{line}: has no effect without -m (python run.py -m ...)")


def _points(parsed: Sequence[Override], base: DictConfig, *, grid: bool) -> Iterator[list[str]]:
    """Yield the overrides of every job to check.

    A grid is expanded as Hydra's basic sweeper does. Any other sweeper chooses its own points:
    each value (an interval's ends) is then checked once, the others at their first.
    """
    swept = [o for o in parsed if o.is_sweep_override()]
    given = {o.get_key_element() for o in parsed}
    params = OmegaConf.select(base, "hydra.sweeper.params") or {}
    lines = [f"{key}={value}" for key, value in params.items()]
    axes = [
        _values(override, grid=grid)
        for override in [*_parse(lines), *swept]
        if override in swept or override.get_key_element() not in given
    ]
    if grid:
        yield from (list(point) for point in itertools.product(*axes))
        return
    first = [values[0] for values in axes]
    yield first
    for place, values in enumerate(axes):
        for value in values[1:]:
            yield [*first[:place], value, *first[place + 1 :]]


def _values(override: Override, *, grid: bool) -> list[str]:
    """Return the override once for each of its values."""
    key, value = override.get_key_element(), override.value()
    if isinstance(value, IntervalSweep):
        if grid:
            raise ConfigError(f"{_line(override)}: an interval needs hydra/sweeper=search (Optuna)")
        return [f"{key}={value.start}", f"{key}={value.end}"]
    if not override.is_sweep_override():
        return [f"{key}={override.get_value_element_as_str()}"]
    values = [f"{key}={text}" for text in override.sweep_string_iterator()]
    if not values:
        raise ConfigError(f"{_line(override)}: matches nothing")
    return values


def _check_plugins(base: DictConfig) -> None:
    """Raise ConfigError if seqrun's own launcher or sweeper refuses its arguments."""
    for key in ("launcher", "sweeper"):
        node = base.hydra[key]
        if not str(node._target_).startswith("hydra_plugins.seqrun."):
            continue
        try:
            instantiate(node)
        except InstantiationException as error:
            if isinstance(error.__cause__, ConfigError):
                raise error.__cause__ from None
            raise ConfigError(f"hydra.{key}: {first_line(error.__cause__ or error)}") from None


# ---- what files may say


def _brings_a_file(key: str) -> bool:
    """Return whether an override of this key may choose an option of a group, which is a file."""
    return not KEY.fullmatch(key) or key.lstrip("+~") in (*GROUPS, *FILE_GROUPS)


def _check_files(cfg: DictConfig, name: str, said: Sequence[str], given: Sequence[str]) -> None:
    """Raise ConfigError if a chosen sweep or reproduction sets what it may not.

    A launcher's `setup` or a logging configuration would run code before anything of ours. The
    command line may say these things: it is composed alone and whatever differs is the files'.

    Args:
        cfg: the composed experiment.
        name: of the primary configuration.
        said: the command line's overrides; the node's own list of them is for anyone to write.
        given: all of which it was composed, those that a search chose too.
    """
    choices = {group: cfg.hydra.runtime.choices.get(group) for group in FILE_GROUPS}
    where = ", ".join(f"{group}={choice}" for group, choice in choices.items() if choice)
    if not where:
        return
    kept = [o for o in said if o.lstrip("+~").startswith(("hydra", "allow_targets"))]
    kept = [o for o in kept if not o.lstrip("+~").startswith("hydra.sweeper.")]  # a file's own
    alone = _compose(name, kept)
    node, node_alone = _unresolved(cfg.hydra), _unresolved(alone.hydra)
    for key in node:
        if key in OF_FILES or node[key] == node_alone.get(key):
            continue
        if key not in OF_HYDRA or _is_forged(key, node, node_alone, given):
            raise ConfigError(f"{where}: sets hydra.{key}; of hydra it may set only mode, sweeper")
    if cfg.allow_targets != alone.allow_targets:
        raise ConfigError(f"{where}: sets allow_targets, which only the command line may")
    _check_sweeper(node["sweeper"], cfg.hydra.runtime.choices.get("hydra/sweeper"), where, name)


def _check_sweeper(node: Mapping[str, Any], choice: str | None, where: str, name: str) -> None:
    """Raise ConfigError if a file sets more of a sweeper than what is searched, and how long.

    Args:
        node: the sweeper's node, unresolved.
        choice: of hydra/sweeper.
        where: the file, for messages.
        name: of the primary configuration.
    """
    chosen = [] if choice is None else [f"hydra/sweeper={choice}"]
    alone = _unresolved(_compose(name, chosen).hydra)["sweeper"]
    if not isinstance(node, Mapping):
        raise ConfigError(f"{where}: hydra.sweeper={node}: must be a node")
    for key, value in node.items():
        if value == alone.get(key):
            continue
        if key not in OF_SWEEPER:
            allowed = ", ".join(OF_SWEEPER)
            raise ConfigError(f"{where}: sets hydra.sweeper.{key}; of it it may set only {allowed}")
        if "${" in str(value):
            raise ConfigError(f"{where}: hydra.sweeper.{key}: must not hold references ${{...}}")
    sampler = node.get("sampler")
    if not isinstance(sampler, Mapping | None):
        raise ConfigError(f"{where}: hydra.sweeper.sampler={sampler}: must be a node")
    if isinstance(sampler, Mapping) and not SAMPLER.fullmatch(str(sampler.get("_target_"))):
        target = sampler.get("_target_")
        raise ConfigError(f"{where}: hydra.sweeper.sampler._target_={target}: must be a sampler")
    for target in _targets({k: v for k, v in node.items() if k not in ("_target_", "sampler")}):
        raise ConfigError(f"{where}: hydra.sweeper: _target_={target}: only a sampler may have one")
    for target in _targets([v for v in (sampler or {}).values() if not isinstance(v, str)]):
        raise ConfigError(f"{where}: hydra.sweeper.sampler: _target_={target}: must not be there")
    params = node.get("params")
    if not isinstance(params, Mapping | None):
        raise ConfigError(f"{where}: hydra.sweeper.params={params}: must be a node")
    for key in params or {}:
        if not KEY.fullmatch(str(key)):
            raise ConfigError(f"{where}: hydra.sweeper.params.{key}: must be a key as optimizer.lr")
        if str(key).lstrip("+~").split(".")[0] in NOT_SEARCHED:
            raise ConfigError(f"{where}: hydra.sweeper.params.{key}: only the command line may")


def _is_forged(
    key: str, node: Mapping[str, Any], alone: Mapping[str, Any], given: Sequence[str]
) -> bool:
    """Return whether a file wrote into what Hydra itself sets: the overrides, the run's facts."""
    if key == "overrides":
        return any(line not in given for line in (*node[key]["hydra"], *node[key]["task"]))
    facts = {k: v for k, v in node[key].items() if k not in ("choices", "config_sources")}
    return facts != {k: v for k, v in alone[key].items() if k not in ("choices", "config_sources")}


def _unresolved(node: DictConfig) -> Any:
    """Return Hydra's node as plain data, without the one key of its jobs that overrides change."""
    container: Any = OmegaConf.to_container(node, resolve=False)
    container["job"].pop("override_dirname", None)
    return container


def _targets(node: Any) -> Iterator[Any]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key == "_target_":
                yield value
            yield from _targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from _targets(value)


# ---- composing, and what Hydra's errors mean


def _parse(lines: Sequence[str]) -> list[Override]:
    loader = GlobalHydra.instance().config_loader()
    try:
        return OverridesParser.create(config_loader=loader).parse_overrides(list(lines))
    except OverrideParseException as error:
        reason = first_line(error).removesuffix(".")
        raise ConfigError(f"{error.override}: not an override key=value: {reason}") from None


def _compose(name: str, overrides: list[str]) -> DictConfig:
    try:
        return compose(name, overrides=overrides, return_hydra_config=True)
    except MissingConfigException as error:
        raise ConfigError(_missing_option(error)) from None
    except RecursionError:
        raise ConfigError("a chosen file is nested too deeply") from None
    except YAMLError as error:
        raise ConfigError(f"no YAML: {' '.join(str(error).split())}") from None
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(_explain(error, name, overrides)) from None


def _missing_option(error: MissingConfigException) -> str:
    """Say which option a group does not have, and which it has."""
    path = error.missing_cfg_file
    if path is None or "/" not in path:
        return first_line(error)
    depth = path.rindex("/") if path.startswith("hydra/") else path.index("/")
    group, option = path[:depth], path[depth + 1 :]
    options = _options(group)
    allowed = f"must be one of {', '.join(options)}" if options else "this group has no option"
    return f"{group}={option}: {allowed}{nearest(option, options)}"


def _options(group: str) -> list[str]:
    """Return the options of a group, those of its sub-groups as <sub-group>/<option>."""
    loader = GlobalHydra.instance().config_loader()
    below = loader.get_group_options(group, ObjectType.GROUP)
    nested = [f"{sub}/{option}" for sub in below for option in _options(f"{group}/{sub}")]
    return [*loader.get_group_options(group), *nested]


def _explain(error: Exception, name: str, overrides: list[str]) -> str:
    """Turn Hydra's composition error into one line with the key, the value and what is allowed."""
    text = f"{error}\n{error.__cause__ or ''}"
    wrong_type = re.search(r"Value '(.*)' of type '.*' could not be converted to (\w+)", text)
    full_key = re.search(r"full_key: (\S+)", text)
    if wrong_type and full_key:
        value, kind = wrong_type.groups()
        return f"{full_key[1]}={value}: must be {TYPES.get(kind, kind)}"
    merged = re.search(r"Error merging override \+*([\w.]+)=", text)
    if merged and "Invalid type assigned" in text:
        key = merged[1]
        keys = [k for k in _known_keys(name, overrides) if k.startswith(f"{key}.")]
        given = next(o for o in overrides if o.lstrip("+").split("=")[0] == key)
        return f"{given}: is a node, of which single keys are set: {', '.join(keys)}"
    not_optional = re.search(r"field '([\w.]+)' is not Optional", text)
    if not_optional:
        return f"{not_optional[1]}=null: must not be null"
    unknown = re.search(r"Could not override '([^']+)'", text) or re.search(
        r"Key '([^']+)' (?:is )?not in ", text
    )
    if unknown is None:
        reason = first_line(error)
        if reason.endswith("raised while composing config:"):  # what: the next line
            where, what = reason.split(": ")[0], str(error).splitlines()[1]
            return f"{where}: {full_key[1]}: {what}" if full_key else f"{where}: {what}"
        cause = f": {first_line(error.__cause__)}" if error.__cause__ else ""
        return f"{reason}{cause}"
    key = full_key[1] if full_key and "Could not override" not in text else unknown[1]
    given = next((o for o in overrides if o.lstrip("+~").split("=")[0].split("@")[0] == key), key)
    known = _known_keys(name, overrides)
    if key.startswith("hydra"):
        alone = any(key.startswith(f"{k}.") for k in NEED_MULTIRUN)
        hint = " without -m, or this one has no such key" if alone else ""
        return f"{given}: no such key of Hydra's{hint}"
    if key in FILE_GROUPS:
        return f"{given}: must be one of {', '.join(_options(key))}"
    below = key.rpartition(".")[0]
    siblings = [k for k in known if k.rpartition(".")[0] == below]
    if not siblings:
        siblings = [k for k in known if "." not in k]
    listed = ", ".join(k.removeprefix(f"{below}.") for k in siblings)
    return f"{given}: no such key; must be one of {listed}{nearest(key, known)}"


def _known_keys(name: str, overrides: Sequence[str]) -> list[str]:
    """Return the keys of the experiment as far as its group choices are in order."""
    choices = [o for o in overrides if o.split("=")[0] in (*GROUPS, "sweeps", "reproductions")]
    for attempt in (choices, []):
        try:
            cfg = compose(name, overrides=attempt)
        except (HydraException, OmegaConfBaseException):
            continue
        return [*dotted_keys(cfg), "sweeps", "reproductions"]
    return []


def _line(override: Override) -> str:
    """Return the override as it was written."""
    return override.input_line or ""


def _resolution(error: OmegaConfBaseException) -> str:
    """Return why a reference cannot be resolved: what a resolver of ours says, said by it."""
    return first_line(error).removeprefix("ConfigError raised while resolving interpolation: ")
