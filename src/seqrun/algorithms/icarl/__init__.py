"""iCaRL: Incremental Classifier and Representation Learning.

Paper: Rebuffi et al. 2017, "iCaRL: Incremental Classifier and Representation Learning",
1611.07725.

- Training (algorithm 3) is on the task's data and all exemplars together. The loss is the sum over
  classes of BCE(g_y(x), target), where g_y is the sigmoid of output y. For the task's own classes
  the target is the one-hot label; for earlier classes it is the output of the network from before
  the task.
- After the task (algorithms 4 and 5), herding selects memory_size / classes exemplars of each new
  class; of earlier classes the first exemplars are kept.
- Classification (algorithm 1) predicts the class whose mean exemplar is nearest to x. Features, the
  classifier's inputs, are L2-normalised, and so are their means.

Differs from the paper: the loss leaves out the outputs of classes that no task has contained yet
(with benchmark.softmax_over = "all" they have target 0, as in the authors' code). Each class has
memory_size / classes exemplars rounded down, so that all of them fit (the authors' code rounds up).
Herding follows a mean of normalised features that is not itself normalised again, as in the
authors' code. Where training mirrors images, the class means are of the exemplars and their mirror
images, as in the authors' code for CIFAR (`mirrored_means`). The untrained model of row 0 has no
exemplars and is evaluated by its outputs. A measurement within a task uses the exemplars of earlier
classes and all training samples of the task for its own.

The logged task loss is the whole sum, and the training accuracy is that of the outputs.
Reduces to naive: never.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from seqrun.algorithms.base.memory import MemoryOwner
from seqrun.algorithms.icarl.exemplars import class_means
from seqrun.benchmarks import Dataset
from seqrun.checks import ConfigError, Numerics, added, boolean, one_of, whole
from seqrun.memory import MemoryMechanism


class ICaRLState(NamedTuple):
    """State of iCaRL: the network from before the task.

    Attributes:
        params: parameter name -> value.
        stats: BatchNorm statistic name -> value.
        classes: (C,) bool, the classes of earlier tasks; none in the first task.
    """

    params: dict[str, Any]
    stats: dict[str, Any]
    classes: Any


class ICaRLMeans(NamedTuple):
    """The class means that iCaRL classifies by.

    Attributes:
        means: (C, D) float32 mean feature of each class, of length 1; 0 for an unknown class.
        known: (C,) bool, the classes that have a mean.
    """

    means: Any
    known: Any


def _numerics(options: Mapping[str, Any]) -> int:
    """Return 2 if the class means are, by default, of mirror images too."""
    follows = options["mirrored_means"] is None
    return 2 if follows and options["benchmark"].horizontal_flip else 1


@dataclass(kw_only=True, eq=False)
class ICaRLOptions(MemoryOwner):
    """Distil earlier classes, rehearse exemplars, and classify by the nearest mean exemplar.

    Rebuffi et al. 2017 (1611.07725), algorithms 1 to 5.

    Args:
        memory_size: exemplars of all classes together, K in the paper, at least one per class.
        reduction: "sum" of the loss over classes (the paper) or their "mean" (the authors' code).
        classify_by: "nearest_mean" of exemplars, or the "outputs" of the network (the paper's
            ablation hybrid1).
        mirrored_means: average the features of each exemplar and of its mirror image in the class
            means, as the authors' code for CIFAR does; None = where training mirrors images too
            (`benchmark.horizontal_flip`).

    Raises:
        ConfigError: a value out of range, or a stream that is not class-incremental.
    """

    memory_size: int = 200
    reduction: str = "sum"
    classify_by: str = "nearest_mean"
    mirrored_means: bool | None = added(None, before=False)

    name: ClassVar[str] = "icarl"
    numerics: ClassVar[Numerics] = staticmethod(_numerics)
    scenarios: ClassVar[tuple[str, ...]] = ("class",)
    scenarios_reason: ClassVar[str] = "which learns one classifier over a growing set of classes"

    def __post_init__(self) -> None:
        whole("memory_size", self.memory_size, 1)
        super().__post_init__()
        one_of("reduction", self.reduction, ("sum", "mean"))
        one_of("classify_by", self.classify_by, ("nearest_mean", "outputs"))
        if self.mirrored_means is not None:
            boolean("mirrored_means", self.mirrored_means)
        self._check_memory_size()

    def reset(self) -> None:
        super().reset()
        self._class_sizes: list[np.ndarray] = []  # samples per class of each task, as far as needed

    def make_memory(self) -> MemoryMechanism:
        return MemoryMechanism(policy="herding", memory_size=self.memory_size)

    def _check_memory_size(self) -> None:
        if not self.benchmark.knows("num_classes"):
            return
        classes = self.benchmark.num_classes
        if self.memory_size < classes:
            raise ConfigError(
                f"memory_size={self.memory_size}: must be at least {classes}, one exemplar of "
                "each class"
            )

    # ---- training data: the task's samples and the exemplars

    @property
    def trains_on_task_alone(self) -> bool:
        return False

    def training_size(self, task: int) -> int:
        """Return the number of the task's samples and of the exemplars stored by then."""
        for t in range(len(self._class_sizes) + 1, task):
            labels = self.training_data(t).y
            self._class_sizes.append(np.unique(labels, return_counts=True)[1])
        sizes = np.concatenate([np.zeros(0, int), *self._class_sizes[: task - 1]])
        share = self.memory_size // max(len(sizes), 1)
        return super().training_size(task) + int(np.minimum(sizes, share).sum())

    def make_replay_dataset(self, data: Dataset) -> Dataset:
        """Return the task's data, then the exemplars."""
        return self.memory.start_task(data, self.num_tasks)

    def plan_epoch(self, task: int, epoch: int, num_samples: int) -> list[dict[str, np.ndarray]]:
        """Shuffle the task's data and the exemplars together."""
        total = num_samples + self.memory.filled
        return super().plan_epoch(task, epoch, total)

    # ---- exemplars

    def initial_state(self) -> ICaRLState:
        """Return a copy of the current network, and the classes that it has learned."""
        params, stats = self.engine.snapshot()
        return ICaRLState(params, stats, self.engine.to_device(self.past_classes()))

    def on_device(self, means: np.ndarray, known: np.ndarray) -> ICaRLMeans:
        """Return the class means on the device."""
        return ICaRLMeans(self.engine.to_device(means), self.engine.to_device(known))

    def initial_persistent_state(self) -> ICaRLMeans:
        """Return zeros, since no class has a mean yet."""
        size, classes = self.engine.parameter_shapes()["classifier/kernel"]
        return self.on_device(np.zeros((classes, size), np.float32), np.zeros(classes, bool))

    def on_before_fit(self) -> None:
        """Check the memory size if the number of classes is known only from the data."""
        self._check_memory_size()

    def on_after_task(self) -> None:
        """Choose exemplars, and keep a copy of the network for the next task."""
        current = self.replay_dataset.x[: self.num_current]
        self.memory.end_task(self.task, self.random, self.features(current))
        self.progress.memory_bytes = self.memory.num_bytes
        self.state = self.initial_state()

    @property
    def _representatives(self) -> Dataset | None:
        """The samples that stand for their classes at this moment; None = there are none yet."""
        if self.classify_by == "outputs":
            return None
        stored = self.memory.data
        ended = 0 if stored is None else int(stored.t.max()) + 1  # the last task with exemplars
        if self.num_current and self.replay_dataset.t[0] >= ended:  # a later task is in training
            return self.replay_dataset.rows(slice(self.num_current + self.memory.filled))
        return stored

    def prepare_evaluation(self) -> None:
        """Compute the class means from the features of this moment."""
        samples = self._representatives
        if samples is None:
            return
        x, y = samples.x, samples.y
        if self.has_mirrored_means:
            x, y = np.concatenate([x, np.flip(x, 2)]), np.concatenate([y, y])
        means, known = class_means(self.features(x), y, self.benchmark.num_classes)
        self.persistent = self.on_device(means, known)

    @property
    def has_mirrored_means(self) -> bool:
        """Whether the class means are of the exemplars and their mirror images."""
        if self.mirrored_means is None:
            return self.benchmark.horizontal_flip
        return self.mirrored_means

    def evaluation_arrays(self, task: int) -> ICaRLMeans | None:
        """Return the class means if predictions use them, else None."""
        return None if self._representatives is None else self.persistent

    def past_classes(self) -> np.ndarray:
        """Return (C,) bool, the classes of the tasks so far."""
        class_mask = self.benchmark.class_mask
        if self.task == 0 or class_mask is None:  # no task has started, or no data are loaded
            return np.zeros(self.benchmark.num_classes, bool)
        return np.logical_or.reduce(class_mask[: self.task])
