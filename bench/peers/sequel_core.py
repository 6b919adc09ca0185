"""sequel-core on Rotated MNIST, both backends: its algorithms, data loaders, callbacks, logger."""

from __future__ import annotations

import time

STARTED = time.perf_counter()

import os  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402

import work  # noqa: E402


def benchmark(arguments, tasks):
    """Return the tasks as sequel's benchmark, of its own datasets for MNIST."""
    import torch
    import torchvision.transforms as T
    from sequel.benchmarks.mnist import ContinualMNIST, RotationTransform
    from sequel.benchmarks.utils import ContinualDataset, ContinualVisionDataset

    class Ready(ContinualDataset, torch.utils.data.TensorDataset):
        """Tensors with the id of their task."""

    def dataset(task, split):
        images, labels = torch.from_numpy(split.images), torch.from_numpy(split.labels)
        if arguments.data == "tensors":
            ready = Ready(task, torch.from_numpy(split.floats()), labels)
            ready.targets = labels
            return ready
        turn = [] if split.angle is None else [RotationTransform(split.angle)]
        return ContinualVisionDataset(task, images, labels, T.Compose([*turn, T.ToTensor()]))

    class Tasks(ContinualMNIST):
        classes_per_task = 10

        @property
        def dimensions(self):
            """Return the shape of an image, channels first."""
            return list(tasks[0][0].floats().shape[1:])

        def prepare_datasets(self):
            """Wrap the arrays."""
            pairs = [
                (dataset(task, train), dataset(task, test))
                for task, (train, test) in enumerate(tasks, 1)
            ]
            trains, tests = zip(*pairs, strict=True)
            return dict(enumerate(trains, 1)), dict(enumerate(tests, 1))

    return Tasks(
        num_tasks=len(tasks),
        batch_size=work.BATCH,
        eval_batch_size=256,
        num_workers=arguments.workers,
        pin_memory=False,
    )


def keys(algo):
    """Return the constructor's arguments of an algorithm."""
    return {
        "naive": {},
        "ewc": {"ewc_lambda": work.EWC_LAMBDA},
        "er": {
            "per_task_memory_samples": work.MEMORY,
            "memory_batch_size": work.MEMORY_BATCH,
            "memory_group_by": "task",
        },
        "agem": {
            "per_task_memory_samples": work.PER_TASK,
            "memory_batch_size": work.REFERENCE_BATCH,
            "memory_group_by": "task",
        },
    }[algo]


def torch_parts(network):
    """Return the backbone, the optimizer and the metrics of the PyTorch side."""
    import torch
    from adapters import torch_metrics
    from sequel.backbones.pytorch import MLP
    from sequel.backbones.pytorch.resnet import ResNet18Thin

    if network == "mlp":
        backbone = MLP(width=work.WIDTH, n_hidden_layers=2, num_classes=10)
        backbone(torch.ones(1, 1, 28, 28))  # its layers are lazy
    else:
        backbone = ResNet18Thin(num_classes=10)
    optimizer = torch.optim.SGD(backbone.parameters(), lr=work.LR)
    return backbone, optimizer, torch_metrics()


def jax_parts():
    """Return the backbone, the optimizer and the metrics of the JAX side."""
    import optax
    from sequel.backbones.jax import MLP
    from sequel.utils.callbacks import JaxMetricCallback

    backbone = MLP(width=work.WIDTH, n_hidden_layers=2, num_classes=10)
    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=work.LR)
    return backbone, optimizer, JaxMetricCallback()


def main() -> None:
    """Train and answer."""
    arguments = work.asked(__doc__ or "")
    folder = tempfile.TemporaryDirectory()
    os.environ["HOME"] = folder.name  # sequel makes a folder in it when it is imported
    sys.stdout = sys.stderr
    import sequel.algos
    import torch
    from sequel.utils.callbacks import TqdmCallback
    from sequel.utils.callbacks.algo_callback import AlgoCallback
    from sequel.utils.loggers import LocalLogger

    torch.set_num_threads(arguments.threads)
    clock = work.Clock(arguments.warm_up)

    class Timer(AlgoCallback):
        """Tell the clock."""

        def on_before_training_epoch(self, algo):
            """Begin."""
            clock.begin_task()

        def on_after_training_step(self, algo):
            """Count."""
            clock.step()

        def on_after_training_epoch(self, algo):
            """End."""
            clock.end_task()

    imported = time.perf_counter()
    tasks = work.splits(arguments)
    stream = benchmark(arguments, tasks)
    prepared = time.perf_counter()
    is_torch = arguments.backend == "torch"
    backbone, optimizer, metrics = torch_parts(arguments.network) if is_torch else jax_parts()
    algos = sequel.algos.pytorch.ALGOS if is_torch else sequel.algos.jax.ALGOS
    algorithm = algos[arguments.algo](
        backbone=backbone,
        benchmark=stream,
        optimizer=optimizer,
        callbacks=[metrics, TqdmCallback(), Timer()],
        loggers=[LocalLogger()],
        **keys(arguments.algo),
        **({"device": "cpu"} if is_torch else {}),
    )
    os.chdir(folder.name)  # where its logger writes
    algorithm.fit(epochs=1)
    ended = time.perf_counter()
    parts = {
        "imports": imported - STARTED,
        "data": prepared - imported,
        "training": clock.training,
        "rest": ended - prepared - clock.training,
        "total": ended - STARTED,
    }
    if not arguments.whole:
        loader = stream.train_dataloader(len(tasks))
        parts["reading_rate"] = work.reading(loader, arguments.steps)
    os.chdir(Path(__file__).parent)
    framework = ("torch",) if is_torch else ("jax", "flax", "optax")
    work.answer(arguments, clock, parts, ("sequel-core", *framework))


if __name__ == "__main__":
    main()
