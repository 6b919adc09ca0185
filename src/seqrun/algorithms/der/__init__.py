"""DER and DER++: Dark Experience Replay.

Paper: Buzzega et al. 2020, "Dark experience for general continual learning: a strong, simple
baseline", 2004.07211. DER, equation 6: L = CE(B) + alpha E_(x', z') ~ M [||z' - h(x')||^2]; DER++,
equation 7, adds beta E_(x'', y'') ~ M [CE(y'', h(x''))]. h(x) are the logits of x, z' the logits of
x' at the time it was stored, B is the current batch and M a reservoir over the whole stream.

As in the authors' code, the squared distance is averaged over batch and classes; z' are the logits
of the training step that stored x', before it updated the parameters; the two memory batches are
drawn independently; and each batch goes through the network separately, in train mode. z' and h(x')
are the logits of all classes, including those that the cross-entropy excludes.

As in the authors' code too, every batch of every epoch is offered to the reservoir, so that logits
are sampled along the whole optimisation (observe = "first_epoch" offers each sample once per
task); stored inputs are not augmented, and replayed ones are if the benchmark asks for it.

Differs from the paper: on a class-incremental stream the cross-entropy runs over the classes seen
so far, in the authors' code over all: benchmark.softmax_over = "all". On Split MNIST (five tasks
of 2,000 images, 10 epochs, memory of 200, MLP 100-100; five seeds) DER has 79.3 % with the former
and 84.2 % with the latter, DER++ 82.4 and 84.9 %. The logged task loss is CE(B).
With alpha = 0 (and beta = 0) the parameters are those of naive.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from seqrun.algorithms.replay import ReplayOptions, refuse_single_samples
from seqrun.checks import at_least, changed, one_of
from seqrun.memory import MemoryMechanism


class DERState(NamedTuple):
    """State of DER and DER++.

    Attributes:
        logits: (memory_size, C) float32, z' of the sample in each slot, 0 in an empty slot.
    """

    logits: Any


@dataclass(kw_only=True, eq=False)
class DEROptions(ReplayOptions):
    """Keep the logits of stored samples near the stored ones: CE(B) + alpha mean((h(x') - z')^2).

    Buzzega et al. 2020 (2004.07211), equation 6.

    Args:
        alpha: weight of the mean squared distance of the logits, >= 0; 0 is naive.
        memory_size: samples in the reservoir, from all tasks together, >= 1.
        memory_batch_size: samples of each memory batch, >= 1; if fewer are stored, all of them.
        observe: "every_epoch": each sample is offered to the reservoir in every epoch; or in the
            "first_epoch" of a task only.

    Raises:
        ConfigError: a value out of range, or memory batches of one sample with BatchNorm.
    """

    alpha: float = 1.0
    memory_size: int = 200
    observe: str = changed("every_epoch")

    name: ClassVar[str] = "der"
    hparam_names: ClassVar[tuple[str, ...]] = ("alpha",)
    vectorizable: ClassVar[tuple[str, ...]] = ("alpha",)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("alpha", self.alpha, 0.0)
        one_of("observe", self.observe, ("first_epoch", "every_epoch"))
        refuse_single_samples(
            self.backbone,
            memory_size=self.memory_size,
            memory_batch_size=self.memory_batch_size,
        )

    def make_memory(self) -> MemoryMechanism:
        return MemoryMechanism(
            policy="reservoir", memory_size=self.memory_size, observe=self.observe
        )

    def on_after_task(self) -> None:
        """Update the memory, and count the logits in its size."""
        super().on_after_task()
        self.progress.memory_bytes += self.state.logits.nbytes


@dataclass(kw_only=True, eq=False)
class DERPPOptions(DEROptions):
    """DER with the labels of stored samples: equation 6 + beta CE(h(x''), y'').

    Buzzega et al. 2020 (2004.07211), equation 7.

    Args:
        alpha: weight of the mean squared distance of the logits, >= 0.
        beta: weight of the cross-entropy on a second memory batch, >= 0; 0 is DER.
        memory_size: samples in the reservoir, from all tasks together, >= 1.
        memory_batch_size: samples of each of the two memory batches, >= 1; if fewer are stored, all
            of them.
        observe: "every_epoch": each sample is offered to the reservoir in every epoch; or in the
            "first_epoch" of a task only.

    Raises:
        ConfigError: a value out of range, or memory batches of one sample with BatchNorm.
    """

    alpha: float = 0.3
    beta: float = 1.0

    name: ClassVar[str] = "derpp"
    hparam_names: ClassVar[tuple[str, ...]] = ("alpha", "beta")
    vectorizable: ClassVar[tuple[str, ...]] = ("alpha", "beta")
    batch_names: ClassVar[tuple[str, ...]] = ("index", "replay", "replay_labels")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("beta", self.beta, 0.0)
