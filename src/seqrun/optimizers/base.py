"""BaseOptimizer, and the arguments and state types of SGD and Adam."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from seqrun.checks import ConfigError, Numerics, at_least, boolean, within


@dataclass(kw_only=True, eq=False)
class BaseOptimizer:
    """A pure update rule: `init` returns a state, `update` the next parameters and state.

    All scalars that enter arithmetic are passed to `update` as `hparams`, so that a new value never
    causes a recompilation on JAX.

    Args:
        lr: learning rate, > 0.
        weight_decay: L2 coefficient added to the gradient (coupled), >= 0.

    Raises:
        ConfigError: a value out of range.
    """

    lr: float
    weight_decay: float = 0.0

    name: ClassVar[str]
    backend: ClassVar[str]
    hparam_names: ClassVar[tuple[str, ...]] = ("lr", "weight_decay")
    vectorizable: ClassVar[tuple[str, ...]] = ("lr", "weight_decay")
    """See BaseAlgorithm."""
    numerics: ClassVar[Numerics] = 1

    def __post_init__(self) -> None:
        at_least("lr", self.lr, 0.0, strictly=True)
        at_least("weight_decay", self.weight_decay, 0.0)

    def hparams(self) -> dict[str, float]:
        """Return the hyper-parameters that enter the update."""
        return {name: float(getattr(self, name)) for name in self.hparam_names}

    def init(self, params: dict[str, Any]) -> Any:
        """Return the zero state for `params`."""
        raise NotImplementedError

    def update(
        self, gradients: dict[str, Any], opt_state: Any, params: dict[str, Any], hparams: dict
    ) -> tuple[dict[str, Any], Any]:
        """Return the parameters and state after one step."""
        raise NotImplementedError


class SGDState(NamedTuple):
    """Accumulated gradients by parameter name; {} without momentum."""

    momentum_buffer: dict[str, Any]


@dataclass(kw_only=True, eq=False)
class SGDOptions(BaseOptimizer):
    """Stochastic gradient descent: v <- momentum v + g; theta <- theta - lr v.

    With `nesterov`, theta <- theta - lr (g + momentum v). g includes weight_decay * theta.

    Args:
        momentum: in [0, 1).
        nesterov: Nesterov momentum; needs momentum > 0.
    """

    lr: float = 0.05
    momentum: float = 0.0
    nesterov: bool = False

    name: ClassVar[str] = "sgd"
    hparam_names: ClassVar[tuple[str, ...]] = ("lr", "weight_decay", "momentum")
    vectorizable: ClassVar[tuple[str, ...]] = ("lr", "weight_decay", "momentum")

    def __post_init__(self) -> None:
        super().__post_init__()
        within("momentum", self.momentum, 0.0, 1.0, open_high=True)
        boolean("nesterov", self.nesterov)
        if self.nesterov and not self.momentum:
            raise ConfigError("nesterov=True: needs momentum > 0, but momentum=0")


class AdamState(NamedTuple):
    """First and second moments by parameter name, and the number of steps taken (scalar)."""

    exp_avg: dict[str, Any]
    exp_avg_sq: dict[str, Any]
    count: Any


@dataclass(kw_only=True, eq=False)
class AdamOptions(BaseOptimizer):
    """Adam (Kingma & Ba 2015, 1412.6980), with coupled weight decay as in torch.optim.Adam.

    Args:
        beta1, beta2: decay rates of the first and second moment, in [0, 1).
        eps: added to the square root of the second moment, > 0.
    """

    lr: float = 0.001
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    name: ClassVar[str] = "adam"
    hparam_names: ClassVar[tuple[str, ...]] = ("lr", "weight_decay", "beta1", "beta2", "eps")
    vectorizable: ClassVar[tuple[str, ...]] = ("lr", "weight_decay", "beta1", "beta2", "eps")

    def __post_init__(self) -> None:
        super().__post_init__()
        within("beta1", self.beta1, 0.0, 1.0, open_high=True)
        within("beta2", self.beta2, 0.0, 1.0, open_high=True)
        at_least("eps", self.eps, 0.0, strictly=True)
