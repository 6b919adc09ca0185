"""BaseOptimizer, and the arguments and state types of the optimizers with a twin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from seqrun.checks import ConfigError, Numerics, at_least, boolean, within


@dataclass(kw_only=True, eq=False)
class BaseOptimizer:
    """A pure update rule: `init` returns a state, `update` the next parameters and state.

    All scalars that enter arithmetic are passed to `update` as `hparams`, so that a new value never
    causes a recompilation on JAX.

    Args:
        lr: learning rate, > 0, or a list with one per task.
        weight_decay: L2 coefficient added to the gradient (coupled), >= 0.

    Raises:
        ConfigError: a value out of range.
    """

    lr: Any
    weight_decay: float = 0.0

    name: ClassVar[str]
    backend: ClassVar[str]
    hparam_names: ClassVar[tuple[str, ...]] = ("lr", "weight_decay")
    vectorizable: ClassVar[tuple[str, ...]] = ("lr", "weight_decay")
    """See BaseAlgorithm."""
    numerics: ClassVar[Numerics] = 1
    is_compilable: ClassVar[bool] = True
    """Whether torch can compile the update; on JAX every update is."""

    def __post_init__(self) -> None:
        for lr in self._rates():
            at_least("lr", lr, 0.0, strictly=True)
        at_least("weight_decay", self.weight_decay, 0.0)

    def hparams(self) -> dict[str, float]:
        """Return the hyper-parameters that enter the update."""
        values = {name: getattr(self, name) for name in self.hparam_names}
        return {name: float(v) for name, v in (values | {"lr": self.lr_of(1)}).items()}

    def lr_of(self, task: int) -> float:
        """Return the learning rate of `task` (1-based), before `training` changes it."""
        rates = self._rates()
        return float(rates[task - 1] if len(rates) > 1 else rates[0])

    def check_tasks(self, num_tasks: int) -> None:
        """Raise ConfigError unless a list of rates has one entry per task."""
        if isinstance(self.lr, Sequence) and len(self.lr) != num_tasks:
            raise ConfigError(
                f"optimizer.lr={list(self.lr)}: has {len(self.lr)} entries, must have "
                f"benchmark.num_tasks={num_tasks}"
            )

    def _rates(self) -> Sequence[Any]:
        is_list = isinstance(self.lr, Sequence) and not isinstance(self.lr, str) and self.lr
        return self.lr if is_list else [self.lr]

    def check_params(self, params: dict[str, Any]) -> None:
        """Raise ConfigError if parameters of such shapes cannot be updated."""

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

    lr: Any = 0.05
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

    lr: Any = 0.001
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


@dataclass(kw_only=True, eq=False)
class AdamWOptions(AdamOptions):
    """AdamW (Loshchilov & Hutter 2019, 1711.05101).

    theta <- (1 - lr weight_decay) theta, and then Adam's update.

    Args:
        weight_decay: decoupled from the gradient, >= 0.
    """

    weight_decay: float = 0.01

    name: ClassVar[str] = "adamw"


class RMSpropState(NamedTuple):
    """Mean squared gradients and accumulated steps by parameter name; {} without momentum."""

    square_avg: dict[str, Any]
    momentum_buffer: dict[str, Any]


@dataclass(kw_only=True, eq=False)
class RMSpropOptions(BaseOptimizer):
    """RMSprop (Hinton 2012).

    s <- alpha s + (1 - alpha) g^2; theta <- theta - lr g / (sqrt(s) + eps). With momentum,
    b <- momentum b + g / (sqrt(s) + eps) and theta <- theta - lr b.

    Args:
        alpha: decay rate of the mean squared gradient, in [0, 1).
        eps: added to the root, > 0.
        momentum: in [0, 1).
    """

    lr: Any = 0.01
    alpha: float = 0.99
    eps: float = 1e-8
    momentum: float = 0.0

    name: ClassVar[str] = "rmsprop"
    hparam_names: ClassVar[tuple[str, ...]] = ("lr", "weight_decay", "alpha", "eps", "momentum")
    vectorizable: ClassVar[tuple[str, ...]] = ("lr", "weight_decay", "alpha", "eps", "momentum")

    def __post_init__(self) -> None:
        super().__post_init__()
        within("alpha", self.alpha, 0.0, 1.0, open_high=True)
        at_least("eps", self.eps, 0.0, strictly=True)
        within("momentum", self.momentum, 0.0, 1.0, open_high=True)


class AdagradState(NamedTuple):
    """Sums of squared gradients by parameter name."""

    sum: dict[str, Any]


@dataclass(kw_only=True, eq=False)
class AdagradOptions(BaseOptimizer):
    """Adagrad (Duchi et al. 2011): s <- s + g^2; theta <- theta - lr g / (sqrt(s) + eps).

    Args:
        eps: added to the root, > 0.
        initial_accumulator_value: s before the first step, >= 0.
    """

    lr: Any = 0.01
    eps: float = 1e-10
    initial_accumulator_value: float = 0.0

    name: ClassVar[str] = "adagrad"
    hparam_names: ClassVar[tuple[str, ...]] = ("lr", "weight_decay", "eps")
    vectorizable: ClassVar[tuple[str, ...]] = ("lr", "weight_decay", "eps")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("eps", self.eps, 0.0, strictly=True)
        at_least("initial_accumulator_value", self.initial_accumulator_value, 0.0)
