"""iCaRL: Incremental Classifier and Representation Learning.

Paper: Rebuffi et al. 2017, "iCaRL: Incremental Classifier and Representation Learning",
1611.07725. Training (algorithm 3), on the task's data and all exemplars together: the sum over
classes of BCE(g_y(x), target), with g_y the sigmoid of output y; the target is the label, one-hot,
for the task's own classes, and the output of the network as it was before the task for all
earlier ones. At the task's end (algorithms 4 and 5): memory_size / classes exemplars of each
class, by herding; those of earlier classes are cut to the first ones. Classification (algorithm 1):
the class whose mean exemplar is nearest to x. Features, the classifier's input, are L2-normalised,
and so is every mean of them.

Differs from the paper: outputs of classes that no task has brought yet take no part in the loss
(benchmark.softmax_over = "all": they do, with target 0, as in the authors' code). The untrained
model of row 0, which has no exemplars, is evaluated by its outputs; an evaluation within a task
(training.evaluate_every = "epoch") takes all training samples of the task in place of exemplars.

The task loss that is logged is the whole of the sum, and the training accuracy that of the
outputs. Reduces to naive: never.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from seqrun.algorithms.base.memory import MemoryOwner
from seqrun.algorithms.icarl.exemplars import class_means
from seqrun.benchmarks import Dataset
from seqrun.checks import ConfigError, one_of, whole
from seqrun.memory import MemoryMechanism


class ICaRLState(NamedTuple):
    """State of iCaRL: the network before the task.

    Attributes:
        params: parameter name -> value.
        stats: BatchNorm statistic name -> value.
        classes: (C,) bool, the classes of the tasks before; none in the first task.
    """

    params: dict[str, Any]
    stats: dict[str, Any]
    classes: Any


class ICaRLMeans(NamedTuple):
    """What iCaRL classifies by.

    Attributes:
        means: (C, D) float32 mean feature of each class, of length 1; 0 where there is none.
        known: (C,) bool, the classes that have one.
    """

    means: Any
    known: Any


@dataclass(kw_only=True, eq=False)
class ICaRLOptions(MemoryOwner):
    """Distil earlier classes, rehearse exemplars, and classify by the nearest mean of exemplars.

    Rebuffi et al. 2017 (1611.07725), algorithms 1 to 5.

    Args:
        memory_size: exemplars of all classes together, K in the paper, at least one per class.
        reduction: "sum" of the loss over classes (the paper) or their "mean" (the authors' code).
        classify_by: "nearest_mean" of exemplars, or "outputs" of the network (the paper's
            ablation hybrid1).

    Raises:
        ConfigError: a value out of range, or tasks that do not bring classes of their own.
    """

    memory_size: int = 200
    reduction: str = "sum"
    classify_by: str = "nearest_mean"

    name: ClassVar[str] = "icarl"
    scenarios: ClassVar[tuple[str, ...]] = ("class",)
    scenarios_reason: ClassVar[str] = "which learns one classifier over a growing set of classes"

    def __post_init__(self) -> None:
        whole("memory_size", self.memory_size, 1)
        super().__post_init__()
        one_of("reduction", self.reduction, ("sum", "mean"))
        one_of("classify_by", self.classify_by, ("nearest_mean", "outputs"))
        self._refuse_small_memory()
        self._class_sizes: list[np.ndarray] = []  # of each task, as far as asked for

    def make_memory(self) -> MemoryMechanism:
        """Return the memory of exemplars."""
        return MemoryMechanism(policy="herding", memory_size=self.memory_size)

    def _refuse_small_memory(self) -> None:
        if not self.benchmark.knows("num_classes"):
            return
        classes = self.benchmark.num_classes
        if self.memory_size < classes:
            raise ConfigError(
                f"memory_size={self.memory_size}: must be at least {classes}, one exemplar of "
                "each class"
            )

    # ---- what the tasks train on

    @property
    def trains_on_task_alone(self) -> bool:
        """No: on exemplars too."""
        return False

    def training_size(self, task: int) -> int:
        """Return the samples of the task and the exemplars that are there by then."""
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
        """Return the network as it is, and the classes that it has learned."""
        params, stats = self.engine.snapshot()
        return ICaRLState(params, stats, self.engine.to_device(self.past_classes()))

    def on_device(self, means: np.ndarray, known: np.ndarray) -> ICaRLMeans:
        """Return the means of classes on the device."""
        return ICaRLMeans(self.engine.to_device(means), self.engine.to_device(known))

    def initial_persistent_state(self) -> ICaRLMeans:
        """Return no means."""
        size, classes = self.engine.parameter_shapes()["classifier/kernel"]
        return self.on_device(np.zeros((classes, size), np.float32), np.zeros(classes, bool))

    def on_before_fit(self) -> None:
        """Check what only the data say."""
        self._refuse_small_memory()

    def on_after_task(self) -> None:
        """Choose exemplars, and keep the network as it is before the next task."""
        current = self.replay_dataset.x[: self.num_current]
        self.memory.end_task(self.task, self.random, self.features(current))
        self.progress.memory_bytes = self.memory.num_bytes
        self.state = self.initial_state()

    def on_before_validation(self) -> None:
        """Compute the means of classes with the features as they are now."""
        if self.task == 0 or self.classify_by == "outputs":
            return
        samples = self.memory.data
        if samples is None or samples.t.max() < self.task - 1:  # the task has not ended
            samples = self.replay_dataset.rows(slice(self.num_current + self.memory.filled))
        classes = self.benchmark.num_classes
        means, known = class_means(self.features(samples.x), samples.y, classes)
        self.persistent = self.on_device(means, known)

    def evaluation_arrays(self, task: int) -> ICaRLMeans | None:
        """Return the means of classes, if these are what is classified by."""
        return None if self.task == 0 or self.classify_by == "outputs" else self.persistent

    def past_classes(self) -> np.ndarray:
        """Return the (C,) bool classes of the tasks so far."""
        class_mask = self.benchmark.class_mask
        if self.task == 0 or class_mask is None:  # before the data, which tell the classes of tasks
            return np.zeros(self.benchmark.num_classes, bool)
        return np.logical_or.reduce(class_mask[: self.task])
