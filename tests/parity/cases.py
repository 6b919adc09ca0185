"""The experiments in which both backends must agree.

The tolerance: a float32 operation has a relative rounding error of at most u = 2^-24 = 6e-8.
Parameters and losses are of order 1. A step adds about two rounding errors: that of the update, and
lr times that of the gradient, 8 u for its sums of at most 64 terms. Over S steps this is at most
2 S u; 54 steps give 6.5e-6. Differences grow little from step to step in these short runs, hence
1e-5. Cases that amplify rounding errors say by how much. The losses of every case must stay below
`HEALTHY`, since a relative tolerance says nothing about numbers that explode.

`make test-all` compares every case a second time in double precision (`double_precision`), to 1e-9.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from typing import Any

from seqrun.algorithms.stable_sgd import SCHEDULE

TOLERANCE = 1e-5
DOUBLE_PRECISION = sys.modules.get("parity.double_precision")
"""The plugin, if it is in use."""
HEALTHY = 10.0
"""The largest task loss of any step: untrained networks start from ln 10 = 2.3 (iCaRL's from 7)."""


@dataclass(frozen=True)
class Case:
    """An experiment.

    Attributes:
        spec: arguments of `experiments.build`.
        tolerance: on every number; in double precision it is the same for all.
        float32_steps: number of steps that must agree in float32; None = all.
    """

    spec: dict[str, Any] = field(default_factory=dict)
    tolerance: float = TOLERANCE
    float32_steps: int | None = None


SETTINGS = {
    "sgd": Case(),
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
    ),
    # A step is lr m / (sqrt(v) + eps). Where the gradient vanishes, its rounding error du changes
    # the step by lr du / eps: with du = 1e-8 and eps = 1e-4 by 1e-4 lr. (With the default eps of
    # 1e-8, rounding decides such a step; tests/formulas computes Adam by hand.)
    "adam": Case(
        {"optimizer": "adam", "optimizer_options": {"eps": 1e-4, "weight_decay": 0.01}},
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
    ),
    # Dividing by a batch's standard deviation, here down to 0.05, multiplies rounding errors by up
    # to 20. A bias before BatchNorm has a Fisher of 0.8 (in eval mode), so that a larger lr is
    # unstable with ewc_lambda.
    "batch_norm": Case({"backbone": {"batch_norm": True}, "optimizer_options": {"lr": 0.01}}, 1e-4),
    "task": Case({"benchmark": "split_digits", "stream": {"scenario": "task"}}),
    "class": Case({"benchmark": "split_digits", "stream": {"scenario": "class"}}),
    "class_all": Case(
        {
            "benchmark": "split_digits",
            "stream": {"scenario": "class", "softmax_over": "all", "class_order": "random"},
            "optimizer_options": {"lr": 0.02},
        }
    ),
    # The Fisher of the shared head accumulates, so that lr 0.05 is unstable with ewc_lambda.
    "domain": Case(
        {
            "benchmark": "split_digits",
            "stream": {"scenario": "domain"},
            "optimizer_options": {"lr": 0.01},
        }
    ),
    # Normalised inputs are up to 2 instead of 1, so losses and gradients are a few times larger.
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
"""Settings in which every algorithm is run."""

# 85 samples in evaluation batches of 50, so that a Fisher has two batches of different sizes.
_SHORT = {"stream": {"eval_batch_size": 50}, "training": {"epochs_per_task": 1}}

_SYNC = {"sync_update": True, "optimizer_options": {"lr": 0.05, "momentum": 0.5}}

VARIANTS = {
    "lamaml": {
        "second_order": Case(_SHORT | {"second_order": True}),
        "sync": Case(_SHORT | _SYNC),
        "cmaml": Case(_SHORT | _SYNC | {"learn_lr": False}),
        "one_by_one": Case(_SHORT | {"glances": 1, "inner_chunk_size": 1}),
        # Differentiating BatchNorm twice divides rounding errors by its deviation twice. With two
        # glances they grow to 1.4e-4 (in float64 the twins agree to 7e-14), with one to 5e-6
        # (9e-15). With the default lr_alpha of 0.3 they are 5e-4 at the 21st step and 1.3e-2 at the
        # end; in float64 the twins agree to 1e-9 there too.
        "second_order_batch_norm": Case(
            _SHORT
            | {
                "second_order": True,
                "glances": 1,
                "lr_alpha": 0.1,
                "inner_relu": True,
                "clip": None,
                "backbone": {"batch_norm": True},
            },
            3e-5,
        ),
        # Two epochs with two glances are 100 steps, which differ by 1.7e-5 (in float64 by 4e-14);
        # the tolerance is for about 54. One epoch of 50 steps differs by 8e-8 (2e-16).
        "class": Case(SETTINGS["class"].spec | {"training": {"epochs_per_task": 1}}),
    },
    "kcl": {
        "rbf": Case(_SHORT | {"kernel_type": "rbf"}),
        "linear": Case(_SHORT | {"kernel_type": "linear", "scaling": "l2"}),
        "poly": Case(_SHORT | {"kernel_type": "poly", "tau": 1.0}),
        "authors": Case(_SHORT | {"scaling": "authors"}),
        "unit features": Case(_SHORT | {"scaling": "l2"}),
    },
    "icarl": {
        "mean": Case({"reduction": "mean", "stream": {"softmax_over": "all"}}),
        "outputs": Case(_SHORT | {"classify_by": "outputs", "memory_size": 35}),
        "smallest": Case(_SHORT | {"memory_size": 10}),
    },
    # Each of these is also computed by hand on both backends (tests/algorithms/test_ewc.py).
    "ewc": {
        "exact": Case(_SHORT | {"fisher": "exact"}),
        "sample": Case(_SHORT | {"fisher": "sample"}),
        # For a poor model the most probable label has a large Fisher, as do all classes together.
        "pred": Case(_SHORT | {"fisher": "pred", "ewc_lambda": 10.0}),
        "batched": Case(_SHORT | {"fisher": "batched"}),
        "weighted": Case(_SHORT | {"fisher_weight": "p", "penalty_scale": 1.0}),
        "weighted_pred": Case(_SHORT | {"fisher": "pred", "fisher_weight": "p"}),
        "some": Case(_SHORT | {"fisher_samples": 37}),
        # Min-max scaling divides by the range, here of the order of 1e-3.
        "running": Case({"fisher_running": True, "ewc_lambda": 5.0}, 1e-4),
        "running_rarely": Case(
            _SHORT | {"fisher_running": True, "fisher_running_every": 50, "ewc_lambda": 5.0}, 1e-4
        ),
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
"""Cases for the options of single algorithms."""


SMALLER = {
    "lamaml": {"glances": 2, "inner_chunk_size": 4},
    # With the default lambda, 0.1, rounding errors grow ten times as much (see ERROR_GROWTH).
    "kcl": {"coreset_per_class": 2, "num_bases": 64, "lambda_init": 1.0},
    "agem": {"per_task_memory_samples": 20, "memory_batch_size": 16},
    # With BatchNorm the default 40 epochs are unstable and amplify rounding errors without bound.
    "mcsgd": {"lmc_epochs": 10},
}
"""Options that make costly algorithms fast."""
OWN_KEYS = {"stable_sgd": SCHEDULE, "lamaml": {"grad_clip": "clip"}}
"""Option of `training` -> the algorithm's option that replaces it."""
ERROR_GROWTH = {"kcl": 1 + 20 / 1.01}
"""Ridge regression multiplies rounding errors by its condition number, 1 + samples / ridge.

With another instruction set the same twin differs by up to 1.9e-4 after 40 steps. The first
`EXACT_STEPS` steps must agree as well as those of any other algorithm. In float64 the twins agree
to 6e-12.
"""
EXACT_STEPS = 12


def suited(algo: str, case: Case) -> Case:
    """Return the case adapted to an algorithm: short, and with keys of its own for `training`'s."""
    case = replace(
        case,
        spec=SMALLER.get(algo, {}) | case.spec,
        tolerance=case.tolerance * ERROR_GROWTH.get(algo, 1.0),
    )
    if DOUBLE_PRECISION is not None:
        case = replace(case, tolerance=DOUBLE_PRECISION.TOLERANCE, float32_steps=None)
    if algo not in OWN_KEYS:
        return case
    training = dict(case.spec.get("training", {}))
    own = {own: training.pop(key) for key, own in OWN_KEYS[algo].items() if key in training}
    own |= {"dropout": 0.0} if algo == "stable_sgd" else {}
    return replace(case, spec=case.spec | own | {"training": training})
