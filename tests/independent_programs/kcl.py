"""KCL, as its paper states it, and the way back through it."""

from __future__ import annotations

import numpy as np
from independent_programs.network import Arrays, add, d_cross_entropy, forward
from independent_programs.product import Learner, inputs

CLASSES = 10
MOMENTS = ("mean", "log_variance")


def part(w: Arrays, prefix: str) -> Arrays:
    """Return the parameters below a prefix."""
    return {n.removeprefix(prefix): a for n, a in w.items() if n.startswith(prefix)}


def amortised(w: Arrays, m: np.ndarray) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """Map a mean feature through three linear layers with ELU between them."""
    tape = []
    for i in range(3):
        z = m @ w[f"linear_{i}/kernel"] + w[f"linear_{i}/bias"]
        tape.append((m, z))
        m = np.where(z > 0, z, np.expm1(np.minimum(z, 0))) if i < 2 else z
    return m, tape


def amortised_back(w: Arrays, tape: list, d: np.ndarray) -> tuple[Arrays, np.ndarray]:
    """Return the gradient of such a network, and the derivative by its input."""
    g: Arrays = {}
    for i, (m, z) in reversed(list(enumerate(tape))):
        if i < 2:
            d = d * np.where(z > 0, 1.0, np.exp(np.minimum(z, 0)))
        g[f"linear_{i}/kernel"], g[f"linear_{i}/bias"] = np.outer(m, d), d
        d = w[f"linear_{i}/kernel"] @ d
    return g, d


class Regression:
    """The kernel ridge regression of a task's coreset, with random Fourier features.

    psi(x) = sqrt(2/D) cos(omega x + b), omega = mu + sigma noise; K = psi(C) psi(C)^T;
    A = (K + (|lambda| + 0.01) I)^-1 Y; logits = gamma psi(x) psi(C)^T A + beta.
    """

    def __init__(self, w: Arrays, task: int, core: tuple, noise: np.ndarray, b: np.ndarray):
        self.w, self.task, self.noise, self.b = w, task, noise, b
        self.pass_c = forward(part(w, "encoder/"), core[0])
        h = self.pass_c.features
        self.low, self.high = h.min(), h.max()
        self.c = self.scaled(h)
        self.q = {m: amortised(part(w, f"posterior/{m}/"), self.c.mean(0)) for m in MOMENTS}
        self.sigma = np.exp(self.q["log_variance"][0] / 2)
        self.omega = self.q["mean"][0] + self.sigma * noise
        self.psi_c, self.u_c = self.psi(self.c)
        ridge = abs(w["lambda"][task]) + 0.01
        self.inverse = np.linalg.inv(self.psi_c @ self.psi_c.T + ridge * np.eye(len(h)))
        self.a = self.inverse @ np.eye(CLASSES)[core[1]]

    def scaled(self, h: np.ndarray) -> np.ndarray:
        """Return features scaled by the coreset's range."""
        return (h - self.low) / (self.high - self.low)

    def psi(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return Fourier features, and the angles."""
        u = x @ self.omega.T + self.b
        return np.sqrt(2 / len(self.b)) * np.cos(u), u

    def logits(self, psi: np.ndarray) -> np.ndarray:
        """Return the (N, C) logits."""
        return self.w["gamma"][self.task] * psi @ self.psi_c.T @ self.a + self.w["beta"][self.task]

    def gradient(self, x: np.ndarray, y: np.ndarray, tau: float) -> Arrays:
        """Return the gradient of CE + tau KL(q || p), p of the batch."""
        w, t = self.w, self.task
        pass_x = forward(part(w, "encoder/"), x)
        scaled = self.scaled(pass_x.features)
        psi, u = self.psi(scaled)
        d = d_cross_entropy(self.logits(psi), y)
        # back through the regression
        g = {n: np.zeros_like(w[n]) for n in ("lambda", "gamma", "beta")}
        k = psi @ self.psi_c.T
        g["gamma"][t] = (d * (k @ self.a)).sum()
        # That of beta, the sum of d, is sum p - 1 = 0; its rounding error of 1e-17 grows under Adam
        # with weight decay, by lr weight_decay / eps = 5000 a step.
        d = w["gamma"][t] * d
        d_k, d_a = d @ self.a.T, k.T @ d
        d_matrix = -(self.inverse @ d_a) @ self.a.T
        g["lambda"][t] = np.trace(d_matrix) * np.sign(w["lambda"][t])
        d_psi_c = d_k.T @ psi + (d_matrix + d_matrix.T) @ self.psi_c
        # back through the bases
        d_u = -np.sqrt(2 / len(self.b)) * np.sin(u) * (d_k @ self.psi_c)
        d_u_c = -np.sqrt(2 / len(self.b)) * np.sin(self.u_c) * d_psi_c
        d_x, d_c = d_u @ self.omega, d_u_c @ self.omega
        d_omega = d_u.T @ scaled + d_u_c.T @ self.c
        # KL(q || p) of diagonal Gaussians
        p = {m: amortised(part(w, f"prior/{m}/"), scaled.mean(0)) for m in MOMENTS}
        (mu_q, log_q), (mu_p, log_p) = ([net[m][0] for m in MOMENTS] for net in (self.q, p))
        away, ratio = (mu_q - mu_p) / np.exp(log_p), np.exp(log_q - log_p)
        d_q = {
            "mean": d_omega.sum(0) + tau * away,
            "log_variance": (d_omega * self.noise).sum(0) * self.sigma / 2 + tau * (ratio - 1) / 2,
        }
        d_p = {
            "mean": -tau * away,
            "log_variance": tau * (1 - ratio - (mu_q - mu_p) * away) / 2,
        }
        for net, values, ds, rows in (("posterior", self.q, d_q, d_c), ("prior", p, d_p, d_x)):
            for m in MOMENTS:
                prefix = f"{net}/{m}/"
                own, d_mean = amortised_back(part(w, prefix), values[m][1], ds[m])
                g |= {prefix + n: a for n, a in own.items()}
                rows += d_mean / len(rows)
        # back through the scaling, by the coreset's least and greatest feature, and the encoder
        width, h = self.high - self.low, self.pass_c.features
        both = [(d_x, scaled), (d_c, self.c)]
        d_low = sum((ds * (s - 1)).sum() for ds, s in both) / width
        d_high = sum(-(ds * s).sum() for ds, s in both) / width
        d_h = d_c / width
        d_h += d_low * (h == self.low) / (h == self.low).sum()
        d_h += d_high * (h == self.high) / (h == self.high).sum()
        encoder = add(pass_x.gradient(None, d_x / width), self.pass_c.gradient(None, d_h))
        return g | {f"encoder/{n}": a for n, a in encoder.items()}


class KCL(Learner):
    """A learner that is given the task of a test sample, and its own coreset."""

    cores: list[tuple[np.ndarray, np.ndarray]]
    b: np.ndarray

    def noise(self, purpose: int, position: int) -> np.ndarray:
        """Return the plan's normals for the bases of a training step (1) or a task's test (2)."""
        shape = len(self.b), len(self.w["posterior/mean/linear_0/bias"])
        rng = self.run.random.generator("noise", purpose, position)
        return rng.standard_normal(shape, dtype=np.float32).astype(float)

    def accuracy(self, test: int, allowed: np.ndarray | None) -> float:
        """Return the accuracy on a task that has a coreset."""
        if test >= len(getattr(self, "cores", [])):
            return np.nan
        r = Regression(self.w, test, self.cores[test], self.noise(2, test + 1), self.b)
        data = self.run.tests[test]
        features = forward(part(self.w, "encoder/"), inputs(data.x)).features
        scores = r.logits(r.psi(r.scaled(features))[0])
        return float((scores.argmax(1) == data.y).mean())


def kcl(learner: KCL, tau: float) -> Arrays:
    """CE of each task's kernel regression + tau KL(q || p).

    lambda, gamma and beta of other tasks do not move, whatever the optimizer does.
    """
    learner.b, learner.cores, number = learner.run.arrays["state/phase"].astype(float), [], 0
    for task in learner.run.tasks:
        learner.optimizer.start()
        rows = task.steps[0].rows["coreset"]
        learner.cores.append((task.pool_x[rows], task.pool_y[rows]))
        t, others = task.number - 1, np.arange(len(learner.run.tasks)) != task.number - 1
        for step in task.steps:
            r = Regression(learner.w, t, learner.cores[t], learner.noise(1, number), learner.b)
            kept = {n: learner.w[n] for n in ("lambda", "gamma", "beta")}
            learner.step(r.gradient(step.x, step.y, tau))
            learner.w |= {n: np.where(others, a, learner.w[n]) for n, a in kept.items()}
            number += 1
        learner.measure(task)
    return {}
