"""Metrics of continual learning: pure functions of the accuracy matrix.

R is a (T+1, T) float array with R[i, j-1] = accuracy on task j after training on tasks 1..i. Row 0
is the untrained model; NaN means not measured. The formulas below write R[i, j] with j from 1, as
the papers do. A metric is None, never 0, if it needs an entry that was not measured or more tasks
than there are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def average_accuracy(R: np.ndarray) -> float | None:
    """Return mean_j R[T, j], in [0, 1].

    Lopez-Paz & Ranzato 2017 (GEM), eq. 2 (ACC).
    """
    return _mean(_final_row(R))


def average_forgetting(R: np.ndarray) -> float | None:
    """Return mean_{j<T} (max_{j<=l<T} R[l, j] - R[T, j]), in [-1, 1]; None for one task.

    Chaudhry et al. 2018 (Riemannian Walk), "Forgetting Measure": the average over old tasks of
    f_j = max_{l<T} a[l, j] - a[T, j], with a[l, j] = 0 for l < j. Negative if old tasks improved.

    Rows before task j was trained on never count, so that the value does not depend on which tasks
    to come were measured too.
    """
    return _mean(_best(R, _num_tasks(R)) - _final_row(R)[:-1])


def backward_transfer(R: np.ndarray) -> float | None:
    """Return mean_{j<T} (R[T, j] - R[j, j]), in [-1, 1]; None for one task.

    Lopez-Paz & Ranzato 2017 (GEM), eq. 3 (BWT).
    """
    return _mean((_final_row(R) - _just_learned(R))[:-1])


def forward_transfer(R: np.ndarray) -> float | None:
    """Return mean_{j>=2} (R[j-1, j] - R[0, j]), in [-1, 1]; None for one task.

    Lopez-Paz & Ranzato 2017 (GEM), eq. 4 (FWT), with the untrained model as the reference b.
    """
    tasks = _num_tasks(R)
    return _mean(np.diagonal(R[1:tasks, 1:]) - R[0, 1:])


def learning_accuracy(R: np.ndarray) -> float | None:
    """Return mean_j R[j, j], in [0, 1].

    Riemer et al. 2019 (MER), section 5, "Learning Accuracy (LA)": each task's accuracy right after
    it is learned.
    """
    return _mean(_just_learned(R))


def average_incremental_accuracy(
    R: np.ndarray, test_sizes: Sequence[int] | None = None
) -> float | None:
    """Return mean_k (accuracy on the test samples of all tasks 1..k after task k), in [0, 1].

    Rebuffi et al. 2017 (iCaRL), section 4. The accuracy after task k is measured on the pooled test
    samples: sum_{j<=k} n_j R[k, j] / sum_{j<=k} n_j.

    Args:
        R: (T+1, T) accuracy matrix.
        test_sizes: (T,) n_j, the number of test samples of each task, >= 1; None = all equal.
    """
    tasks = _num_tasks(R)
    sizes = np.ones(tasks) if test_sizes is None else np.asarray(test_sizes, np.float64)
    if sizes.shape != (tasks,):
        raise ValueError(f"test_sizes has shape {sizes.shape}, must have one entry per task")
    seen = [R[k, :k] @ sizes[:k] / sizes[:k].sum() for k in range(1, tasks + 1)]
    return _mean(np.array(seen))


def compute_metrics(
    R: np.ndarray, test_sizes: Sequence[int] | None = None
) -> dict[str, float | None]:
    """Return name -> value of every metric.

    Pass `R[: k + 1, :k]` for the metrics after task k.

    Args:
        R: (T+1, T) accuracy matrix.
        test_sizes: (T,) number of test samples of each task; None = all equal.
    """
    return {
        "average_accuracy": average_accuracy(R),
        "average_forgetting": average_forgetting(R),
        "backward_transfer": backward_transfer(R),
        "forward_transfer": forward_transfer(R),
        "learning_accuracy": learning_accuracy(R),
        "average_incremental_accuracy": average_incremental_accuracy(R, test_sizes),
    }


METRICS = (
    "average_accuracy",
    "average_forgetting",
    "backward_transfer",
    "forward_transfer",
    "learning_accuracy",
    "average_incremental_accuracy",
)
"""The names of the metrics."""


def lower_is_better(metric: str) -> bool:
    """Return True if a method is the better, the lower its value of a metric."""
    return "forgetting" in metric


def run_metrics(
    R: np.ndarray, R_task_aware: np.ndarray | None = None, test_sizes: Sequence[int] | None = None
) -> dict[str, float | None]:
    """Return a run's metrics; "<metric>_task_aware" is the metric with the task given at test.

    A second matrix is that of scenario "class", where UNDEFINED_BY_CLASS has no value.
    """
    metrics = compute_metrics(R, test_sizes)
    if R_task_aware is not None:
        metrics.update(dict.fromkeys(UNDEFINED_BY_CLASS))
        task_aware = compute_metrics(R_task_aware, test_sizes)
        metrics.update({f"{name}_task_aware": value for name, value in task_aware.items()})
    return metrics


UNDEFINED_BY_CLASS = {
    "forward_transfer": "classes not seen yet are never predicted, so that it would be minus the "
    "untrained network's accuracy, whatever the method; forward_transfer_task_aware is defined"
}
"""Metric -> why it has no value in scenario "class"."""


def published_metrics(
    R: np.ndarray, R_task_aware: np.ndarray | None = None, test_sizes: Sequence[int] | None = None
) -> dict[str, float | None]:
    """Return a run's metrics and the variants that some papers publish."""
    metrics = run_metrics(R, R_task_aware, test_sizes)
    for name, metric in PUBLISHED_AS.items():
        metrics[name] = metric(R)
        if R_task_aware is not None:
            metrics[f"{name}_task_aware"] = metric(R_task_aware)
    return metrics


def backward_transfer_over_all(R: np.ndarray) -> float | None:
    """Return mean_{j<=T} (R[T, j] - R[j, j]), in [-1, 1]: the last task counts as 0.

    Gupta et al. 2020 (La-MAML), "BTI"; Riemer et al. 2019 (MER).
    """
    return _mean(_final_row(R) - _just_learned(R))


def average_forgetting_over_all(R: np.ndarray) -> float | None:
    """Return mean_{j<T} (max_{j<=l<=T} R[l, j] - R[T, j]), in [0, 1]; None for one task.

    Mirzadeh et al. 2020 (Stable SGD) and 2021 (MC-SGD), as in their code: the maximum includes the
    last row, so that a task that is best at the end counts as 0.
    """
    return _mean(_best(R, _num_tasks(R) + 1) - _final_row(R)[:-1])


PUBLISHED_AS = {
    "average_forgetting_over_all": average_forgetting_over_all,
    "backward_transfer_over_all": backward_transfer_over_all,
}
"""Variants of our metrics, as some papers define them."""


def mean_matrix(matrices: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean over runs; each entry is averaged over the runs that measured it."""
    return np.ma.masked_invalid(np.stack(matrices)).mean(axis=0).filled(np.nan)


def summarise(runs: Sequence[Mapping[str, float | None]]) -> dict[str, dict[str, Any]]:
    """Summarise the metrics of several runs (seeds).

    Args:
        runs: for each run, metric -> value; undefined values (None) are left out.

    Returns:
        metric -> {"mean", "std", "ci95", "n"}, where std is the sample standard deviation
        (ddof = 1) and ci95 the 95 % confidence interval of the mean,
        mean +- t_{0.975, n-1} std / sqrt(n) (Student 1908). std and ci95 are None if n = 1; the
        mean too if n = 0.
    """
    names = list(dict.fromkeys(name for run in runs for name in run))
    return {name: _summary([run.get(name) for run in runs]) for name in names}


def _summary(values: Sequence[float | None]) -> dict[str, Any]:
    defined = np.array([v for v in values if v is not None], np.float64)
    n = len(defined)
    if n == 0:
        return {"mean": None, "std": None, "ci95": None, "n": 0}
    mean = float(defined.mean())
    if n == 1:
        return {"mean": mean, "std": None, "ci95": None, "n": 1}
    std = float(defined.std(ddof=1))
    half = float(student_t_quantile(0.975, n - 1)) * std / math.sqrt(n)
    return {"mean": mean, "std": std, "ci95": [mean - half, mean + half], "n": n}


def half_width(summary: Mapping[str, Any]) -> float | None:
    """Return half the width of the 95 % interval in a `summarise` result; None = unknown."""
    interval = summary["ci95"]
    return None if interval is None else interval[1] - summary["mean"]


def half_widths(values: np.ndarray) -> np.ndarray:
    """Return half widths of 95 % intervals of the means over the first axis, as in `summarise`.

    Args:
        values: (n, ...) float; values that were not measured (NaN) are left out.

    Returns:
        (...) float64, NaN where fewer than two values were measured.
    """
    n = (~np.isnan(values)).sum(axis=0)
    at_least_two = np.maximum(n, 2)
    mean = np.nansum(values, axis=0) / np.maximum(n, 1)
    std = np.sqrt(np.nansum((values - mean) ** 2, axis=0) / (at_least_two - 1))
    quantile = student_t_quantile(0.975, at_least_two - 1)
    return np.where(n > 1, quantile * std / np.sqrt(at_least_two), np.nan)


def student_t_quantile(probability: float, degrees_of_freedom: Any) -> Any:
    """Return quantiles of Student's t distribution: a number, or an array like the degrees."""
    from scipy.special import stdtrit  # imported lazily: it takes 0.1 s

    return stdtrit(degrees_of_freedom, probability)


def _num_tasks(R: np.ndarray) -> int:
    if R.ndim != 2 or R.shape[0] != R.shape[1] + 1 or R.shape[1] < 1:
        raise ValueError(f"an accuracy matrix is (T+1, T) with T >= 1, not {R.shape}")
    return R.shape[1]


def _final_row(R: np.ndarray) -> np.ndarray:
    return R[_num_tasks(R)]


def _just_learned(R: np.ndarray) -> np.ndarray:
    """Return (T,) R[j, j]: the accuracy on each task right after training on it."""
    _num_tasks(R)
    return np.diagonal(R[1:])


def _best(R: np.ndarray, end: int) -> np.ndarray:
    """Return (T-1,) max_{j<=l<end} R[l, j] of all tasks but the last; NaN = not measured."""
    return np.array([R[j:end, j - 1].max() for j in range(1, _num_tasks(R))])


def _mean(values: np.ndarray) -> float | None:
    """Return the mean; None if there are no values or if one is NaN."""
    return float(values.mean()) if len(values) and not np.isnan(values).any() else None
