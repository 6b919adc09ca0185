"""Group the jobs of a multirun that can share their compiled programs.

Jobs can share them if they differ only in seeds and in numbers that compiled code takes as
arguments: those that algorithm, optimizer and `training` list in `vectorizable`. Everything else
belongs to the structure of a run, and so does whether such a number is null or 0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from seqrun.algorithms.base import BaseAlgorithm, TrainingOptions
from seqrun.callbacks import BaseCallback
from seqrun.config.targets import TARGET, find_target
from seqrun.files import flatten
from seqrun.optimizers.base import BaseOptimizer
from seqrun.sweeps.summary import SweepJob
from seqrun.training.callback import has_step_hook

HOST_KEYS = (
    "seed",
    "logger",
    "resume",
    "seeds_strategy",
    "expected",
    "tags",
    "notes",
    "optimized_metric",
)
"""Keys of an experiment that no compiled program reads, besides the seeds in `streams`."""


def group(jobs: Sequence[SweepJob]) -> tuple[list[list[SweepJob]], list[tuple[SweepJob, str]]]:
    """Return groups of at least two jobs, and every other job with the reason why it runs alone."""
    alone: list[tuple[SweepJob, str]] = []
    alike: dict[str, list[SweepJob]] = {}
    structures: dict[str, dict[str, Any]] = {}
    for job in jobs:
        if reason := cannot_share(job.config):
            alone.append((job, reason))
            continue
        structure = structure_of(job.config) | {"hydra.job.env_set": dict(job.environment)}
        text = json.dumps(structure, sort_keys=True, default=repr)
        alike.setdefault(text, []).append(job)
        structures[text] = structure
    for text, members in alike.items():
        if len(members) == 1:
            others = [found for name, found in structures.items() if name != text]
            alone.append((members[0], _what_differs(structures[text], others)))
    return [members for members in alike.values() if len(members) > 1], alone


def cannot_share(config: Mapping[str, Any]) -> str:
    """Return why an experiment cannot share its programs with any other; "" = it can."""
    if config["backend"] != "jax":
        return f"backend={config['backend']}: only JAX trains several runs in one program"
    if isinstance(config["seed"], list) and len(config["seed"]) > 1:
        return "it has several seeds, which run as seeds_strategy says"
    if config["seeds_strategy"] == "processes":
        return "seeds_strategy=processes: its seeds run in their own processes"
    allowed = config["allow_targets"]
    for name, node in config["callbacks"].items():
        key = f"callbacks.{name}"
        if node and has_step_hook(find_target(key, node[TARGET], BaseCallback, allowed)):
            return f"{key}: must see every step on the host"
    return ""


def structure_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of an experiment that must be equal in runs that share their programs.

    Returns:
        Dotted key -> value; for a number that may differ, only its kind.
    """
    numbers = set(vectorizable_keys(config))
    kept = {k: v for k, v in config.items() if k not in HOST_KEYS}
    kept["streams"] = sorted(config["streams"])
    return {k: _kind(v) if k in numbers else v for k, v in flatten(kept).items()}


def vectorizable_keys(config: Mapping[str, Any]) -> list[str]:
    """Return the dotted keys whose values may differ between runs that share their programs."""
    allowed = config["allow_targets"]
    keys = [f"training.{name}" for name in TrainingOptions.vectorizable]
    for part, base in (("algo", BaseAlgorithm), ("optimizer", BaseOptimizer)):
        foreign = part == "optimizer"  # one of torch.optim or optax is no class of ours
        found = find_target(part, config[part][TARGET], object if foreign else base, allowed)
        keys += [f"{part}.{name}" for name in _declared(found)]
    return keys


def _declared(found: Any) -> tuple[str, ...]:
    """Return a class's `vectorizable`, for a user's class only what it declares itself.

    While a program is traced, such a class may read numbers that its base passes as arguments.
    """
    is_ours = str(found.__module__).split(".")[0] == "seqrun"
    return tuple(found.vectorizable if is_ours else vars(found).get("vectorizable", ()))


def _kind(value: Any) -> Any:
    """Return "a number" for a number other than 0, and any other value unchanged."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return "a number" if is_number and value else value


def _what_differs(own: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> str:
    """Name the keys in which a run differs from the one most like it."""
    if not others:
        return "there is no other job to share its programs with"
    differing: list[list[str]] = [
        [k for k in dict.fromkeys([*own, *other]) if own.get(k) != other.get(k)] for other in others
    ]
    fewest = min(differing, key=len)
    return f"no other job has its {', '.join(fewest)}"
