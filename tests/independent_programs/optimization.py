"""Stable SGD, La-MAML and MC-SGD, as their papers state them."""

from __future__ import annotations

import numpy as np
from independent_programs.network import SGD, Arrays, add, clipped, gradient, zeros
from independent_programs.product import Learner
from independent_programs.regularization import state
from independent_programs.replay import Reservoir


def stable_sgd(learner: Learner, gamma: float, lr_min: float) -> Arrays:
    """CE with lr_t = max(lr gamma^t, lr_min), t from 1, and a fresh optimizer in every epoch."""
    lr = learner.optimizer.lr
    for task in learner.run.tasks:
        learner.optimizer.lr = max(lr * gamma**task.number, lr_min)
        epoch = 0
        for step in task.steps:
            if step.epoch != epoch:
                learner.optimizer.start()
                epoch = step.epoch
            learner.step(learner.gradient(step.x, step.y, task))
        learner.measure(task)
    return {}


def lamaml(
    learner: Learner,
    memory_size: int,
    alpha_init: float,
    lr_alpha: float,
    inner_chunk_size: int,
    sync_update: bool,
    inner_relu: bool = False,
) -> Arrays:
    """Learn each batch chunk by chunk, theta' <- theta' - alpha g; the meta-loss moves both.

    First order: grad_theta is the mean over chunks j of G_j = grad L(theta_{j+1}), grad_alpha that
    of - G_j * (g_0 + ... + g_j). `inner_relu`: theta' <- theta' - relu(alpha) g, whose derivative
    by an alpha <= 0 is 0.
    """
    memory = Reservoir(memory_size)
    alpha = {n: np.full_like(a, alpha_init) for n, a in learner.w.items()}
    for task in learner.run.tasks:
        learner.optimizer.start()
        for step in task.steps:
            meta_x, meta_y = step.x, step.y
            if len(step.rows["replay_slot"]):
                x, y = memory.read(step.rows["replay_slot"])
                meta_x, meta_y = np.concatenate([x, meta_x]), np.concatenate([y, meta_y])
            theta, walked = learner.w, zeros(learner.w)
            g_theta, g_alpha = zeros(theta), zeros(theta)
            rate = {n: np.maximum(a, 0) for n, a in alpha.items()} if inner_relu else alpha
            starts = range(0, len(step.y), inner_chunk_size)
            for i in starts:
                x, y = (a[i : i + inner_chunk_size] for a in (step.x, step.y))
                g = gradient(theta, x, y, task.allowed)
                theta = {n: theta[n] - rate[n] * g[n] for n in g}
                walked = add(walked, g)
                meta = gradient(theta, meta_x, meta_y, task.allowed)
                g_theta = add(g_theta, meta, 1 / len(starts))
                g_alpha = {n: g_alpha[n] - meta[n] * walked[n] / len(starts) for n in g}
            if inner_relu:
                g_alpha = {n: g_alpha[n] * (alpha[n] > 0) for n in g_alpha}
            alpha = add(alpha, clipped(g_alpha, learner.grad_clip), -lr_alpha)
            if sync_update:
                learner.step(g_theta)
            else:
                g = clipped(g_theta, learner.grad_clip)
                learner.w = {n: w - np.maximum(alpha[n], 0) * g[n] for n, w in learner.w.items()}
            memory.write(step, step.x, step.y)
        learner.measure(task)
    return state("alpha", alpha)


# ---- MC-SGD


def mcsgd(
    learner: Learner, lr: float, momentum: float, epochs: int, points: int, position: float
) -> Arrays:
    """w_bar_t is joined to w_bar_{t-1} and w_hat_t by lines of low loss.

    It minimises sum_a L_memory(w_bar + a (w - w_bar)) + L_t(w_hat + a (w - w_hat)), whose gradient
    carries the factor a.
    """
    w_bar: Arrays = {}
    for task in learner.run.tasks:
        learner.optimizer.start()
        for step in task.steps:
            learner.step(learner.gradient(step.x, step.y, task))
        w_hat = learner.w
        if w_bar:
            past = task.stored_t < task.number - 1
            sides = (w_bar, task.stored_x[past], task.stored_y[past]), (w_hat, task.x, task.y)
            w, optimizer = add(w_bar, add(w_hat, w_bar, -1), position), SGD(lr, momentum)
            for _ in range(epochs):
                g = zeros(w)
                for a in np.arange(points + 1) / points:
                    for end, x, y in sides:
                        g = add(g, gradient(add(end, add(w, end, -1), a), x, y), a)
                w = optimizer(w, g)
            w_bar = w
        else:
            w_bar = w_hat
        learner.w = w_bar
        learner.measure(task)
        learner.w = w_hat
    return {f"kept/w_bar/{n}": a for n, a in w_bar.items()}
