"""avalanche-lib on Rotated MNIST: its strategies, data loaders, metrics, loggers, as they are."""

from __future__ import annotations

import time

STARTED = time.perf_counter()

import os  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402

import work  # noqa: E402


def benchmark(arguments, tasks):
    """Return the tasks as avalanche's RotatedMNIST makes them, from arrays."""
    import torch
    from avalanche.benchmarks import nc_benchmark
    from avalanche.benchmarks.utils import (
        DefaultTransformGroups,
        _make_taskaware_classification_dataset,
        make_avalanche_dataset,
    )
    from torchvision.transforms import RandomRotation

    class Images(torch.utils.data.Dataset):
        """As avalanche's TensorMNIST: a uint8 image becomes a float tensor when it is read."""

        def __init__(self, split):
            self.data = torch.from_numpy(split.images)
            self.targets = torch.from_numpy(split.labels)

        def __len__(self):
            return len(self.data)

        def __getitem__(self, index):
            return self.data[index].float().unsqueeze(0) / 255.0, int(self.targets[index])

    class Ready(torch.utils.data.TensorDataset):
        """Float tensors."""

        def __init__(self, split):
            self.targets = torch.from_numpy(split.labels)
            super().__init__(torch.from_numpy(split.floats()), self.targets)

    def dataset(split):
        kind = Ready if arguments.data == "tensors" else Images
        found = _make_taskaware_classification_dataset(kind(split))
        if split.angle is None:
            return found
        turn = RandomRotation(degrees=(split.angle, split.angle))
        groups = DefaultTransformGroups((turn, None))
        return make_avalanche_dataset(found, frozen_transform_groups=groups)

    trains, tests = zip(*[(dataset(train), dataset(test)) for train, test in tasks], strict=True)
    return nc_benchmark(
        list(trains),
        list(tests),
        n_experiences=len(tasks),
        task_labels=False,
        shuffle=False,
        class_ids_from_zero_in_each_exp=True,
        one_dataset_per_exp=True,
    )


def strategy(arguments, timer):
    """Return a strategy with its default metrics and loggers."""
    import torch
    from avalanche.models import SimpleMLP, SlimResNet18
    from avalanche.training import AGEM, EWC, Naive, Replay
    from torch import nn

    if arguments.network == "mlp":
        model = SimpleMLP(10, 784, work.WIDTH, hidden_layers=2, drop_rate=0.0)
    else:
        model = SlimResNet18(10)
    kind, keys = {
        "naive": (Naive, {}),
        "ewc": (EWC, {"ewc_lambda": work.EWC_LAMBDA}),
        "er": (Replay, {"mem_size": work.MEMORY}),  # as many replayed as in a batch
        "agem": (
            AGEM,
            {"patterns_per_exp": work.PER_TASK, "sample_size": work.REFERENCE_BATCH},
        ),
    }[arguments.algo]
    return kind(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=work.LR),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=work.BATCH,
        train_epochs=1,
        eval_mb_size=256,
        plugins=[timer],
        **keys,
    )


def main() -> None:
    """Train and answer."""
    arguments = work.asked(__doc__ or "")
    folder = tempfile.TemporaryDirectory()
    os.environ["HOME"] = folder.name  # for what avalanche and its packages write there
    sys.stdout = sys.stderr
    import torch
    from avalanche.core import SupervisedPlugin

    torch.set_num_threads(arguments.threads)
    clock = work.Clock(arguments.warm_up)

    class Timer(SupervisedPlugin):
        """Tell the clock."""

        def before_training_epoch(self, strategy, **kwargs):
            """Begin."""
            clock.begin_task()

        def after_training_iteration(self, strategy, **kwargs):
            """Count."""
            clock.step()

        def after_training_epoch(self, strategy, **kwargs):
            """End."""
            clock.end_task()

    imported = time.perf_counter()
    tasks = work.splits(arguments)
    stream = benchmark(arguments, tasks)
    prepared = time.perf_counter()
    os.chdir(folder.name)
    training = strategy(arguments, Timer())
    for task, experience in enumerate(stream.train_stream, 1):
        training.train(experience, num_workers=arguments.workers)
        if arguments.whole:
            training.eval(stream.test_stream[:task], num_workers=arguments.workers)
    ended = time.perf_counter()
    parts = {
        "imports": imported - STARTED,
        "data": prepared - imported,
        "training": clock.training,
        "rest": ended - prepared - clock.training,
        "total": ended - STARTED,
    }
    if not arguments.whole:
        from avalanche.benchmarks.utils.data_loader import TaskBalancedDataLoader

        data = stream.train_stream[len(tasks) - 1].dataset.train()
        loader = TaskBalancedDataLoader(
            data, batch_size=work.BATCH, shuffle=True, num_workers=arguments.workers
        )
        parts["reading_rate"] = work.reading(loader, arguments.steps)
    os.chdir(Path(__file__).parent)
    work.answer(arguments, clock, parts, ("avalanche-lib", "torch"))


if __name__ == "__main__":
    main()
