"""The experiments that both backends must agree on.

Where the tolerance comes from. A float32 operation rounds by at most u = 2^-24 = 6e-8 of its
result. Parameters and losses are of order 1, and a step adds about two roundings of them: the
update's own, and lr times the gradient's, whose sums of at most 64 terms carry 8 u. Over S steps
that is at most 2 S u; 54 steps give 6.5e-6, and the growth of a difference from step to step is
small in these short runs: 1e-5. Cases that amplify rounding say by how much. Every case has to
train within `HEALTHY`: next to numbers that explode, a relative tolerance compares nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from seqrun.algorithms.stable_sgd import SCHEDULE

TOLERANCE = 1e-5
HEALTHY = 10.0
"""The largest task loss of any step: untrained networks start from ln 10 = 2.3 (iCaRL's from 7)."""


@dataclass(frozen=True)
class Case:
    """An experiment.

    Attributes:
        spec: arguments of `experiments.build`.
        tolerance: on every number.
        default: whose default suite it is in: "all" algorithms', "naive"'s, which stands for the
            engine, or None's; the others are left to `make test-all`.
    """

    spec: dict[str, Any] = field(default_factory=dict)
    tolerance: float = TOLERANCE
    default: str | None = None

    def in_default_suite(self, algo: str) -> bool:
        """Whether `make test` runs the case for `algo`."""
        return self.default in ("all", algo)


SETTINGS = {
    "sgd": Case(default="naive"),
    "momentum": Case(
        {
            "optimizer_options": {
                "lr": 0.02,
                "momentum": 0.9,
                "nesterov": True,
                "weight_decay": 0.01,
            },
            "training": {"epochs_per_task": [1, 3, 2], "reinit_optimizer": "never"},
        },
        default="all",
    ),
    # A step is lr m / (sqrt(v) + eps): it turns a rounding du of a gradient into lr du / eps where
    # the gradient vanishes. du = 1e-8 and eps = 1e-4: 1e-4 lr a step. (At the shipped eps of 1e-8 a
    # rounding decides such a step; tests/formulas computes that eps by hand.)
    "adam": Case(
        {"optimizer": "adam", "optimizer_options": {"eps": 1e-4, "weight_decay": 0.01}},
        default="naive",
    ),
    "clip": Case(
        {
            "optimizer_options": {"lr": 0.2, "momentum": 0.5},
            "training": {
                "grad_clip": 0.5,
                "lr_decay": 0.5,
                "lr_min": 0.06,
                "decay_first_task": True,
                "reinit_optimizer": "epoch",
                "epochs_per_task": 2,
            },
        },
        default="naive",
    ),
    # A division by a batch's deviation, here down to 0.05, multiplies roundings by up to 20. A
    # bias before it has a Fisher of 0.8 (in eval mode): a larger lr is unstable under ewc_lambda.
    "batch_norm": Case(
        {"backbone": {"batch_norm": True}, "optimizer_options": {"lr": 0.01}}, 1e-4, default="all"
    ),
    "task": Case({"benchmark": "split_digits", "stream": {"scenario": "task"}}, default="naive"),
    "class": Case({"benchmark": "split_digits", "stream": {"scenario": "class"}}, default="all"),
    "class_all": Case(
        {
            "benchmark": "split_digits",
            "stream": {"scenario": "class", "softmax_over": "all", "class_order": "random"},
            "optimizer_options": {"lr": 0.02},
        }
    ),
    # One head for all tasks: its Fisher adds up, and lr 0.05 is unstable under ewc_lambda.
    "domain": Case(
        {
            "benchmark": "split_digits",
            "stream": {"scenario": "domain"},
            "optimizer_options": {"lr": 0.01},
        }
    ),
    # Normalised inputs are up to 2 instead of 1 and make losses and gradients some times larger.
    "permuted": Case(
        {
            "benchmark": "permuted_digits",
            "stream": {"normalize": True},
            "backbone": {"n_hidden_layers": 3, "initialization": "kaiming_normal"},
            "optimizer_options": {"lr": 0.005},
        },
        tolerance=3e-5,
    ),
    "evaluation": Case(
        {
            "stream": {"eval_batch_size": 50, "validation_fraction": 0.1},
            "training": {
                "evaluate_every": "epoch",
                "evaluate_on": "all",
                "epochs_per_task": [1, 2, 2],
                "chunk_steps": 3,
            },
            "backbone": {"n_hidden_layers": 1, "initialization": "xavier_uniform"},
            "seed": 3,
        }
    ),
}
"""Settings that every algorithm is run in."""

# 85 samples in evaluation batches of 50: a Fisher over two batches of different sizes.
_SHORT = {"stream": {"eval_batch_size": 50}, "training": {"epochs_per_task": 1}}

_SYNC = {"sync_update": True, "optimizer_options": {"lr": 0.05, "momentum": 0.5}}

VARIANTS = {
    "lamaml": {
        "second_order": Case(_SHORT | {"second_order": True}, default="all"),
        "sync": Case(_SHORT | _SYNC),
        "cmaml": Case(_SHORT | _SYNC | {"learn_lr": False}),
        "one_by_one": Case(_SHORT | {"glances": 1, "inner_chunk_size": 1}),
        # The derivative of BatchNorm's derivative multiplies roundings by its deviation once more.
        # With two glances they grow to 1.4e-4 (computed in float64 the twins agree to 7e-14); with
        # one to 5e-6 (9e-15).
        "second_order_batch_norm": Case(
            _SHORT | {"second_order": True, "glances": 1, "backbone": {"batch_norm": True}}, 3e-5
        ),
        # Two epochs of two glances are 100 steps, and the tolerance admits about 54: 1.7e-5, in
        # float64 4e-14; these 50 differ by 8e-8, in float64 by 2e-16.
        "class": Case(SETTINGS["class"].spec | {"training": {"epochs_per_task": 1}}),
    },
    "kcl": {
        "rbf": Case(_SHORT | {"kernel_type": "rbf"}),
        "linear": Case(_SHORT | {"kernel_type": "linear", "scaling": "l2"}),
        "poly": Case(_SHORT | {"kernel_type": "poly", "tau": 1.0}),
        "authors": Case(_SHORT | {"scaling": "authors"}),
    },
    "icarl": {
        "mean": Case({"reduction": "mean", "stream": {"softmax_over": "all"}}, default="all"),
        "outputs": Case(_SHORT | {"classify_by": "outputs", "memory_size": 35}),
        "smallest": Case(_SHORT | {"memory_size": 10}),
    },
    # Each of these is also computed by hand on both backends (tests/algorithms/test_ewc.py).
    "ewc": {
        "exact": Case(_SHORT | {"fisher": "exact"}, default="all"),
        "sample": Case(_SHORT | {"fisher": "sample"}),
        # The most probable label of a poor model has a large Fisher, as have all classes.
        "pred": Case(_SHORT | {"fisher": "pred", "ewc_lambda": 10.0}),
        "batched": Case(_SHORT | {"fisher": "batched"}),
        "weighted": Case(_SHORT | {"fisher_weight": "p", "penalty_scale": 1.0}),
        "weighted_pred": Case(_SHORT | {"fisher": "pred", "fisher_weight": "p"}),
        "some": Case(_SHORT | {"fisher_samples": 37}),
        # Min-max scaling divides by the range, here of the order of 1e-3.
        "running": Case({"fisher_running": True, "ewc_lambda": 5.0}, 1e-4, default="all"),
        "batch_norm_exact": Case(
            _SHORT
            | {
                "fisher": "exact",
                "backbone": {"batch_norm": True},
                "optimizer_options": {"lr": 0.01},
            },
            1e-4,
        ),
        "class_exact": Case(
            {
                "benchmark": "split_digits",
                "stream": {"scenario": "class"},
                "fisher": "exact",
                "ewc_lambda": 10.0,
            }
        ),
    },
}
"""An algorithm's own options."""


SMALLER = {
    "lamaml": {"glances": 2, "inner_chunk_size": 4},
    "kcl": {"coreset_per_class": 2, "num_bases": 64},
    "agem": {"per_task_memory_samples": 20, "memory_batch_size": 16},
    # All of the 40 are unstable on BatchNorm's steep lines, and amplify rounding without bound.
    "mcsgd": {"lmc_epochs": 10},
}
"""What keeps the costly ones short."""
AMPLIFIES = {"kcl": 1 + 20 / 1.01}
"""A ridge regression multiplies roundings by its condition number, 1 + samples / ridge.

On another instruction set one twin differs from itself by up to 1.9e-4 after 40 steps; the first
`EXACT_STEPS` steps agree as any other algorithm's do, and must.
"""
EXACT_STEPS = 12


def suited(algo: str, case: Case) -> Case:
    """Return the case for an algorithm: short, and with a schedule or noise in keys of its own."""
    case = replace(
        case,
        spec=SMALLER.get(algo, {}) | case.spec,
        tolerance=case.tolerance * AMPLIFIES.get(algo, 1.0),
    )
    if algo != "stable_sgd":
        return case
    training = dict(case.spec.get("training", {}))
    schedule = {mine: training.pop(key) for key, mine in SCHEDULE.items() if key in training}
    return replace(case, spec=case.spec | schedule | {"training": training, "dropout": 0.0})
