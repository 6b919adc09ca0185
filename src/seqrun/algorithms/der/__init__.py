"""DER and DER++: Dark Experience Replay.

Paper: Buzzega et al. 2020, "Dark experience for general continual learning: a strong, simple
baseline", 2004.07211. DER, equation 6: L = CE(B) + alpha E_(x', z') ~ M [||z' - h(x')||^2]; DER++,
equation 7, adds beta E_(x'', y'') ~ M [CE(y'', h(x''))]. h are the logits, z' those of x' when it
was stored, B the current batch, M a reservoir over the whole stream.

As in the authors' code, the squared distance is the mean over batch and classes; z' are the logits
of the training forward that saw the sample, before that step moved the parameters; the two memory
batches are drawn independently, and each batch goes through the network on its own, in train mode.
z' and h(x') are the logits of all classes, those too that the cross-entropy leaves out.

Differs from the paper: each sample is offered to the reservoir once per task, in the first epoch
(the paper trains for one; observe = "every_epoch" is the authors' loop for several), and inputs
are not augmented. The task loss that is logged is CE(B).
With alpha (and beta) 0 the parameters are naive's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from seqrun.algorithms.replay import ReplayOptions, refuse_single_samples
from seqrun.checks import at_least, one_of
from seqrun.memory import MemoryMechanism


class DERState(NamedTuple):
    """State of DER and DER++.

    Attributes:
        logits: (memory_size, C) float32, z' of the sample in each slot; 0 in an empty one.
    """

    logits: Any


@dataclass(kw_only=True, eq=False)
class DEROptions(ReplayOptions):
    """Keep the logits of memory where they were: CE(B) + alpha mean((h(x') - z')^2).

    Buzzega et al. 2020 (2004.07211), equation 6.

    Args:
        alpha: weight of the logits' mean squared distance, >= 0; 0 is naive.
        memory_size: samples in the reservoir, over all tasks, >= 1.
        memory_batch_size: samples of each memory batch, >= 1; all that are stored if fewer.
        observe: "first_epoch": each sample is offered to the reservoir once per task; or
            "every_epoch".

    Raises:
        ConfigError: a value out of range, or memory batches of one sample with BatchNorm.
    """

    alpha: float = 1.0
    memory_size: int = 200
    observe: str = "first_epoch"

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
        """Return the reservoir."""
        return MemoryMechanism(
            policy="reservoir", memory_size=self.memory_size, observe=self.observe
        )

    def on_after_task(self) -> None:
        """Make the memory of the task's end, and count the logits among its bytes."""
        super().on_after_task()
        self.progress.memory_bytes += self.state.logits.nbytes


@dataclass(kw_only=True, eq=False)
class DERPPOptions(DEROptions):
    """Keep memory's logits where they were, and its labels right: DER + beta CE(h(x''), y'').

    Buzzega et al. 2020 (2004.07211), equation 7.

    Args:
        alpha: weight of the logits' mean squared distance, >= 0.
        beta: weight of the cross-entropy on a second memory batch, >= 0; 0 is DER.
        memory_size: samples in the reservoir, over all tasks, >= 1.
        memory_batch_size: samples of each of the two memory batches, >= 1; all that are stored
            if fewer.
        observe: "first_epoch": each sample is offered to the reservoir once per task; or
            "every_epoch".

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
