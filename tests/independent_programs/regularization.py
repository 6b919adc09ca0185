"""EWC, online EWC, SI, MAS and LFL, as their papers state them."""

from __future__ import annotations

import numpy as np
from independent_programs.network import (
    Arrays,
    add,
    d_cross_entropy,
    forward,
    gradient,
    softmax,
    zeros,
)
from independent_programs.product import Learner, Task


def state(name: str, arrays: Arrays) -> Arrays:
    """Return arrays under the names of a field of the algorithm's state."""
    return {f"state/{name}/{n}": a for n, a in arrays.items()}


# ---- EWC


def fisher(w: Arrays, task: Task, how: str, draws: np.ndarray, batch_size: int) -> Arrays:
    """Return F_i = E_x E_y [(d log p(y|x) / d w_i)^2], sample by sample, y as `how` says."""
    if how == "batched":
        batches = range(0, len(task.y), batch_size)
        squares = [
            gradient(w, task.x[i : i + batch_size], task.y[i : i + batch_size]) for i in batches
        ]
        return {n: np.mean([g[n] ** 2 for g in squares], 0) for n in w}
    total = zeros(w)
    for x, y, u in zip(task.x, task.y, draws, strict=True):
        p = softmax(forward(w, x[None]).logits)[0]
        labels = {
            "exact": [(c, p[c]) for c in range(len(p))],
            "sample": [(int(np.searchsorted(p.cumsum(), u)), 1.0)],
            "pred": [(int(p.argmax()), 1.0)],
            "empirical": [(y, 1.0)],
        }[how]
        for label, weight in labels:
            g = gradient(w, x[None], np.array([label]))
            total = {n: total[n] + weight * g[n] ** 2 / len(task.y) for n in w}
    return total


def ewc(learner: Learner, ewc_lambda: float, how: str = "empirical") -> Arrays:
    """CE + sum over past tasks k of lambda/2 sum_i F_k,i (w_i - w_k,i)^2: one penalty per task."""
    past: list[tuple[Arrays, Arrays]] = []
    for task in learner.run.tasks:
        learner.optimizer.start()
        for step in task.steps:
            g = learner.gradient(step.x, step.y, task)
            for f, anchor in past:
                g = {n: g[n] + ewc_lambda * f[n] * (learner.w[n] - anchor[n]) for n in g}
            learner.step(g)
        draws = learner.run.random.generator("noise", task.number)
        uniform = draws.random(len(task.y), dtype=np.float32)
        past.append((fisher(learner.w, task, how, uniform, len(task.steps[0].y)), learner.w))
        learner.measure(task)
    # seqrun stores the sum of these parabolas as one parabola: its curvature, and its vertex as a
    # distance from the last solution.
    importance = {n: np.sum([f[n] for f, _ in past], 0) for n in learner.w}
    weighted = {n: np.sum([f[n] * anchor[n] for f, anchor in past], 0) for n in learner.w}
    vertex = {
        n: np.where(f > 0, weighted[n] / np.where(f > 0, f, 1), learner.w[n])
        for n, f in importance.items()
    }
    offset = {n: vertex[n] - learner.w[n] for n in vertex}
    merged = state("importance", importance) | state("offset", offset)
    return merged | state("anchor", learner.w)


def ewc_running(learner: Learner, ewc_lambda: float, every: int = 10) -> Arrays:
    """EWC of A-GEM's authors: F <- 0.1 F + 0.9 mean of `every` squared batch gradients.

    F is never reset; at a task's end it is scaled to [0, 1] over all parameters; the penalty is
    that of the latest task. A task of fewer steps ends with an update by these.
    """
    running = zeros(learner.w)
    importance, anchor = zeros(learner.w), learner.w
    for task in learner.run.tasks:
        learner.optimizer.start()
        squares, steps = zeros(learner.w), 0
        for step in task.steps:
            g = learner.gradient(step.x, step.y, task)
            squares, steps = {n: squares[n] + g[n] ** 2 for n in g}, steps + 1
            if steps % every == 0:
                running = {n: 0.1 * running[n] + 0.9 * squares[n] / every for n in g}
                squares = zeros(g)
            pull = {n: importance[n] * (learner.w[n] - anchor[n]) for n in g}
            learner.step(add(g, pull, ewc_lambda))
        if steps < every:
            running = {n: 0.1 * running[n] + 0.9 * squares[n] / steps for n in squares}
        every_one = np.concatenate([a.ravel() for a in running.values()])
        low, high = every_one.min(), every_one.max()
        importance = {n: (a - low) / (high - low) for n, a in running.items()}
        anchor = learner.w
        learner.measure(task)
    return state("importance", importance) | state("anchor", anchor)


def online_ewc(learner: Learner, ewc_lambda: float, gamma: float) -> Arrays:
    """CE + lambda/2 sum_i F_i (w_i - w*_i)^2, F <- gamma F + F_t, w* of the latest task."""
    importance, anchor = zeros(learner.w), learner.w
    for task in learner.run.tasks:
        learner.optimizer.start()
        for step in task.steps:
            g = learner.gradient(step.x, step.y, task)
            pull = {n: importance[n] * (learner.w[n] - anchor[n]) for n in g}
            learner.step(add(g, pull, ewc_lambda))
        f = fisher(learner.w, task, "empirical", np.zeros(len(task.y)), 0)
        importance, anchor = add(f, importance, gamma), learner.w
        learner.measure(task)
    return state("importance", importance) | state("anchor", anchor)


# ---- SI


def si(learner: Learner, si_lambda: float, xi: float, clip: str = "total") -> Arrays:
    """CE + c sum_i Omega_i (w_i - w*_i)^2; omega_i is minus the path integral of the gradient."""
    importance, anchor = zeros(learner.w), learner.w
    for task in learner.run.tasks:
        learner.optimizer.start()
        path, start = zeros(learner.w), learner.w
        for step in task.steps:
            g, before = learner.gradient(step.x, step.y, task), learner.w
            pull = {n: importance[n] * (before[n] - anchor[n]) for n in g}
            learner.step(add(g, pull, 2 * si_lambda))
            path = {n: path[n] - g[n] * (learner.w[n] - before[n]) for n in g}
        for n in importance:
            added = path[n] / ((learner.w[n] - start[n]) ** 2 + xi)
            if clip == "increment":
                added = np.maximum(added, 0)
            importance[n] = importance[n] + added
            if clip == "total":
                importance[n] = np.maximum(importance[n], 0)
        anchor = learner.w
        learner.measure(task)
    return state("importance", importance) | state("anchor", anchor)


# ---- MAS


def mas(learner: Learner, mas_lambda: float, batch_size: int = 1) -> Arrays:
    """CE + lambda sum_i Omega_i (w_i - w*_i)^2, Omega_i += mean_n |d ||F(x_n)||^2 / d w_i|."""
    importance, anchor = zeros(learner.w), learner.w
    for task in learner.run.tasks:
        learner.optimizer.start()
        for step in task.steps:
            g = learner.gradient(step.x, step.y, task)
            pull = {n: importance[n] * (learner.w[n] - anchor[n]) for n in g}
            learner.step(add(g, pull, 2 * mas_lambda))
        for i in range(0, len(task.y), batch_size):
            p = forward(learner.w, task.x[i : i + batch_size])
            outputs = p.logits if task.allowed is None else p.logits * task.allowed
            g = p.gradient(2 * outputs)
            importance = {n: importance[n] + abs(g[n]) / len(task.y) for n in g}
        anchor = learner.w
        learner.measure(task)
    return state("importance", importance) | state("anchor", anchor)


# ---- LFL


def lfl(learner: Learner, lfl_lambda: float) -> Arrays:
    """CE + lambda mean 1/2 ||f(x; old) - f(x)||^2 from task 2 on, with the classifier frozen."""
    old: Arrays = {}
    for task in learner.run.tasks:
        learner.optimizer.start()
        for step in task.steps:
            p = learner.forward(step.x)
            d_features = 0.0
            if old:
                distance = p.features - forward(old, step.x).features
                d_features = lfl_lambda * distance / len(step.y)
            learner.step(p.gradient(d_cross_entropy(p.logits, step.y), d_features))
            frozen = {n: a for n, a in old.items() if n.startswith("classifier/")}
            learner.w = learner.w | frozen
        old = learner.w
        learner.measure(task)
    return state("params", old)
