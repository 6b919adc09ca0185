"""ER, DER, DER++, A-GEM and iCaRL, as their papers state them."""

from __future__ import annotations

import numpy as np
from independent_programs.network import Arrays, add, d_cross_entropy, dot, forward, zeros
from independent_programs.product import Learner, Step
from independent_programs.regularization import state

Samples = tuple[np.ndarray, ...]


class Reservoir:
    """Samples by slot; who is written where is planned, what is stored is not."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.slots: dict[int, Samples] = {}

    def read(self, slots: np.ndarray) -> Samples:
        """Return the fields of the samples in these slots, (R, ...) each."""
        held = [self.slots[slot] for slot in slots.tolist()]
        return tuple(np.array(field) for field in zip(*held, strict=True))

    def write(self, step: Step, *fields: np.ndarray) -> None:
        """Store each sample of a batch in its slot; `size` = nowhere."""
        for slot, *sample in zip(step.rows["write_slot"].tolist(), *fields, strict=True):
            if slot < self.size:
                self.slots[slot] = tuple(sample)


def er(learner: Learner, memory_size: int) -> Arrays:
    """One step on the mean CE over batch and memory batch together, then offer the batch."""
    memory = Reservoir(memory_size)
    for task in learner.run.tasks:
        learner.optimizer.start()
        for step in task.steps:
            x, y = step.x, step.y
            if len(step.rows["replay_slot"]):
                stored_x, stored_y = memory.read(step.rows["replay_slot"])
                x, y = np.concatenate([x, stored_x]), np.concatenate([y, stored_y])
            learner.step(learner.gradient(x, y, task))
            memory.write(step, step.x, step.y)
        learner.measure(task)
    return {}


def der(
    learner: Learner, memory_size: int, alpha: float, beta: float | None = None, epochs: int = 2
) -> Arrays:
    """CE(B) + alpha mean((h(x') - z')^2) [+ beta CE(h(x''), y'')], z' stored before the step.

    The reservoir is offered the samples of the first `epochs` epochs of a task.
    """
    memory = Reservoir(memory_size)
    offered = 0
    for task in learner.run.tasks:
        learner.optimizer.start()
        for step in task.steps:
            p = learner.forward(step.x)
            g = p.gradient(d_cross_entropy(p.logits, step.y, task.allowed))
            if len(step.rows["replay_slot"]):
                x, _, z = memory.read(step.rows["replay_slot"])
                q = learner.forward(x)
                g = add(g, q.gradient(2 * (q.logits - z) / z.size), alpha)
                if beta is not None:
                    x, y, _ = memory.read(step.rows["replay_labels_slot"])
                    g = add(g, learner.gradient(x, y, task), beta)
            learner.step(g)
            memory.write(step, step.x, step.y, p.logits)
            offered += len(step.y) * (step.epoch <= epochs)
        learner.measure(task)
    logits = np.zeros((memory_size, p.logits.shape[1]))
    for slot, (_, _, z) in memory.slots.items():
        logits[slot] = z
    return {"state/logits": logits, "memory/seen": np.asarray(offered)}


def agem(learner: Learner, reference_updates_statistics: bool = True) -> Arrays:
    """If g.g_ref < 0: g <- g - (g.g_ref / g_ref.g_ref) g_ref; g_ref on memory of past tasks.

    As in algorithm 2 of the paper the reference comes first, which running statistics show.
    """
    for task in learner.run.tasks:
        learner.optimizer.start()
        for step in task.steps:
            rows = step.rows["replay"]
            assert (task.pool_t[rows] < task.number - 1).all()
            reference = zeros(learner.w)
            if len(rows):
                stats = dict(learner.stats)
                reference = learner.gradient(task.pool_x[rows], task.pool_y[rows], task)
                if not reference_updates_statistics:
                    learner.stats = stats
            g = learner.gradient(step.x, step.y, task)
            if (product := dot(g, reference)) < 0:
                g = add(g, reference, -product / dot(reference, reference))
            learner.step(g)
        learner.measure(task)
    return {}


# ---- iCaRL


def unit(rows: np.ndarray) -> np.ndarray:
    """Return rows of length 1."""
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)


def herding(features: np.ndarray, count: int) -> list[int]:
    """Choose the samples whose mean follows the mean of all, one by one."""
    chosen: list[int] = []
    for k in range(1, min(count, len(features)) + 1):
        means = (features[chosen].sum(0) + features) / k
        away = np.linalg.norm(features.mean(0) - means, axis=1)
        away[chosen] = np.inf
        chosen.append(int(away.argmin()))
    return chosen


class ICaRL(Learner):
    """A learner that classifies by the nearest mean of exemplars.

    Attributes:
        exemplars: class -> (n, F) inputs, the first chosen first.
    """

    exemplars: dict[int, np.ndarray]

    def means(self) -> np.ndarray:
        """Return (C, D): each class's mean of normalised features, normalised."""
        features = (forward(self.w, x).features for x in self.exemplars.values())
        return np.array([unit(unit(f).mean(0)) for f in features])

    def scores(self, x: np.ndarray) -> np.ndarray:
        """Return minus the distance of normalised features to each class's mean."""
        if not hasattr(self, "exemplars"):  # the untrained network
            return super().scores(x)
        features, known = unit(forward(self.w, x).features), list(self.exemplars)
        scores = np.full((len(x), self.w["classifier/bias"].size), -np.inf)
        scores[:, known] = -np.linalg.norm(features[:, None] - self.means(), axis=2)
        return scores


def icarl(learner: ICaRL, memory_size: int) -> Arrays:
    """Sum over classes of BCE(sigmoid(z), target), batch mean.

    The target of the task's classes is the label, that of earlier ones the old network's output.
    """

    def sigmoid(z: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-z))

    old, past = learner.w, np.zeros(learner.w["classifier/bias"].size, bool)
    exemplars: dict[int, np.ndarray] = {}
    layout: list[np.ndarray] = []  # exemplars as the plan counts them: by task, rank and class
    for task in learner.run.tasks:
        learner.optimizer.start()
        pool = np.concatenate([task.x, *layout])
        for step in task.steps:
            x = pool[step.rows["index"]]
            np.testing.assert_array_equal(x, step.x, "other exemplars")
            p = learner.forward(x)
            target = np.where(past, sigmoid(forward(old, x).logits), np.eye(len(past))[step.y])
            d = (sigmoid(p.logits) - target) * task.allowed / len(x)
            learner.step(p.gradient(d))
        old, past = learner.w, task.allowed
        share = memory_size // int(past.sum())
        exemplars = {c: x[:share] for c, x in exemplars.items()}
        for c in np.unique(task.y).tolist():
            x = task.x[task.y == c]
            exemplars[c] = x[herding(unit(forward(learner.w, x).features), share)]
        layout = [
            exemplars[c][rank : rank + 1]
            for t in learner.run.tasks[: task.number]
            for rank in range(share)
            for c in np.unique(t.y).tolist()
        ]
        learner.exemplars = exemplars
        learner.measure(task)
    means = np.zeros((len(past), learner.means().shape[1]))
    means[list(exemplars)] = learner.means()
    stored = {"memory/x": np.concatenate(layout), "kept/means": means}
    return state("params", old) | stored
