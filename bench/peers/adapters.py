"""What sequel-core 0.0.2 needs to run on current packages. The installed peer is left as it is.

Its JAX side runs as it is. Of its PyTorch side the callback that measures metrics is replaced, for
torchmetrics 1: Accuracy() must be told the kind of task, and MeanMetric() takes no prefix, which it
ignored. What is measured, and how often, stays the same.
"""

from __future__ import annotations

from typing import Any


def torch_metrics(num_classes: int = 10) -> Any:
    """Return the standard callback of sequel's PyTorch side: accuracy and loss of every step."""
    from sequel.utils.callbacks.metrics import pytorch_metric_callback as sequels
    from torch import nn
    from torchmetrics import Accuracy, MeanMetric, MetricCollection

    class Metrics(sequels.PytorchMetricCallback):
        """Sequel's own, but for the argument of MeanMetric."""

        def _reset_metrics(self, prefix):
            names = [f"/{self.get_task_id(i)}" for i in range(self.num_tasks)]
            clone = self.original_metrics.clone
            self.metrics = nn.ModuleList(clone(postfix=name, prefix=prefix) for name in names)
            self.avg_loss = MeanMetric()

    accuracy = Accuracy(task="multiclass", num_classes=num_classes)
    metrics = {"acc": accuracy, "loss": sequels.CrossEntropyLossMetric()}
    return Metrics(MetricCollection(metrics), logging_freq=1)
