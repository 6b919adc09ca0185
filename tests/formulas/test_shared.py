"""Shared formulas, compared with numbers computed by hand, on both backends."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from itertools import product
from typing import Any

import numpy as np
import pytest
from experiments import cases, every_backend

RNG = np.random.default_rng(0)


def formulas(backend: str) -> Any:
    return import_module(f"seqrun.formulas.{backend}")


def to_array(backend: str, value: Any) -> Any:
    """Return a NumPy array, or a dictionary of them, as arrays of the framework."""
    if isinstance(value, dict):
        return {name: to_array(backend, array) for name, array in value.items()}
    if backend == "torch":
        import torch

        return torch.from_numpy(np.array(value))
    import jax.numpy as jnp

    return jnp.asarray(value)


def to_numpy(value: Any) -> np.ndarray:
    return np.asarray(value)


@pytest.mark.ci
@every_backend
def test_cross_entropy(backend: str):
    """Two classes with equal logits cost ln 2; logits (ln 3, 0) give 3/4 to the first."""
    logits = np.float32([[0, 0], [np.log(3), 0]])
    y = np.array([1, 0])
    found = formulas(backend).cross_entropy(to_array(backend, logits), to_array(backend, y))
    assert float(found) == pytest.approx((np.log(2) + np.log(4 / 3)) / 2, rel=1e-6)


@every_backend
def test_allowed_classes_share_all_probability(backend: str):
    logits = np.float32([[5, 1, 1], [5, 1, 1]])
    mask, t = np.array([[True, True, True], [False, True, True]]), np.array([0, 1])
    allow = formulas(backend).allow_classes
    masked = to_numpy(
        allow(to_array(backend, logits), to_array(backend, mask), to_array(backend, t))
    )
    np.testing.assert_array_equal(masked[0], logits[0])
    p = np.exp(masked[1] - masked[1].max())
    np.testing.assert_allclose(p / p.sum(), [0, 0.5, 0.5])
    same = to_array(backend, logits)
    assert allow(same, None, to_array(backend, t)) is same


@pytest.mark.ci
@every_backend
def test_clip_scales_only_long_gradients(backend: str):
    """(3, 4) has norm 5. Clipped to 1 it is (0.6, 0.8); below the limit it keeps its bits."""
    gradients = {"a": np.float32([3.0]), "b": np.float32([4.0])}
    clip = formulas(backend).clip_by_global_norm
    clipped = clip(to_array(backend, gradients), 1.0)
    assert to_numpy(clipped["a"])[0] == pytest.approx(0.6, rel=1e-6)
    assert to_numpy(clipped["b"])[0] == pytest.approx(0.8, rel=1e-6)
    kept = clip(to_array(backend, gradients), 5.1)
    assert to_numpy(kept["a"])[0] == 3.0 and to_numpy(kept["b"])[0] == 4.0
    zero = clip(to_array(backend, {"a": np.zeros(2, np.float32)}), 1.0)
    np.testing.assert_array_equal(to_numpy(zero["a"]), [0, 0])


@every_backend
def test_penalty_and_its_gradient(backend: str):
    """0.5 * (2 * 1^2 + 3 * 2^2) = 7; its gradient is 2 * 0.5 * Omega (theta - theta*)."""
    params = {"a": np.float32([2.0]), "b": np.float32([5.0])}
    anchor = {"a": np.float32([1.0]), "b": np.float32([3.0])}
    importance = {"a": np.float32([2.0]), "b": np.float32([3.0])}
    args = (*(to_array(backend, v) for v in (params, anchor, importance)), 0.5)
    assert float(formulas(backend).penalty(*args)) == 7.0
    gradient = formulas(backend).penalty_gradient(*args)
    gradient = list(gradient.values()) if isinstance(gradient, dict) else gradient
    np.testing.assert_array_equal([to_numpy(g)[0] for g in gradient], [2.0, 6.0])


@every_backend
def test_completed_square_is_the_sum_of_its_terms(backend: str):
    """It has the gradient of the sum in float64; if both importances are 0, the anchor is new."""
    terms = [(RNG.normal(size=50), RNG.random(50) ** 4) for _ in range(4)]
    for _, importance in terms:
        importance[:5] = 0
    anchor, offset, omega = ({"w": np.zeros(50, np.float32)} for _ in range(3))
    for theta, importance in terms:
        merged = formulas(backend).completed_square(
            *(to_array(backend, v) for v in (anchor, offset, omega)),
            *(to_array(backend, {"w": np.float32(v)}) for v in (theta, importance)),
        )
        anchor = {"w": np.float32(theta)}
        offset, omega = ({"w": to_numpy(part["w"])} for part in merged)
    point = RNG.normal(size=50)
    expected = sum(2 * importance * (point - theta) for theta, importance in terms)
    found = 2 * omega["w"] * (point - anchor["w"] - offset["w"])
    np.testing.assert_allclose(found, expected, atol=5e-6)
    assert not offset["w"][:5].any()


@pytest.mark.ci
@every_backend
def test_completed_square_is_at_the_solution_where_nothing_was_important(backend: str):
    """To the bit; elsewhere a solution that equals the anchor leaves it where it is.

    Where the new task has no importance, the anchor stays, to the bit of its distance.

    Adam makes full steps of a gradient of rounding errors, wherever the anchor is nearly right.
    """
    anchor, theta = (RNG.normal(size=1000).astype(np.float32) for _ in range(2))
    omega, added = (RNG.random(1000).astype(np.float32) for _ in range(2))
    omega[:500], added[:250] = 0, 0
    theta[900:] = anchor[900:]
    added[700:800] = 0
    args = ({"w": a} for a in (anchor, np.zeros_like(omega), omega, theta, added))
    merged, _ = formulas(backend).completed_square(*(to_array(backend, a) for a in args))
    offset = to_numpy(merged["w"])
    assert not offset[:500].any() and not offset[900:].any()
    np.testing.assert_array_equal(offset[700:800], (anchor - theta)[700:800])


# ---- layers


@pytest.mark.ci
def test_no_rule_applies_to_a_kernel_that_is_computed_from_parameters():
    """As in spectral normalisation, the kernel's derivative is not that of the parameter."""
    import jax
    from flax import linen as nn

    from seqrun.formulas.parameters.jax import as_tree, canonical
    from seqrun.formulas.per_sample import jax as per_sample

    def doubled(arrays: Any) -> Any:
        return jax.tree.map(lambda array: 2 * array, arrays)

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            layer, first = nn.Dense(3, name="layer"), self.is_initializing()
            call = nn.map_variables(nn.Dense.__call__, "params", doubled, init=first, mutable=True)
            return call(layer, x.reshape(len(x), -1))

    module, x = Network(), np.random.default_rng(0).random((5, 2, 3, 1), np.float32)
    params = canonical(module.init(jax.random.key(0), x)["params"])

    def losses(logits: Any) -> Any:
        return (logits**2).sum(1)

    def loss(params: Any, image: Any) -> Any:
        return losses(module.apply({"params": as_tree(params)}, image[None])).sum()

    found = per_sample.per_sample_power_sum(module, params, {}, x, losses, (), 2)
    each = [jax.grad(loss)(params, image) for image in x]
    for name in params:
        close(found[name], sum(np.asarray(g[name]) ** 2 for g in each), name)


@pytest.mark.ci
@pytest.mark.parametrize("bias", [True, False])
def test_dense_layers(bias: bool):
    """Gradients on 7 and on 2 samples, and their inner product, agree with jax.grad."""
    import jax
    from flax import linen as nn

    from seqrun.formulas.jax import cross_entropy
    from seqrun.formulas.layers import jax as layers
    from seqrun.formulas.parameters.jax import as_tree, canonical

    parts = [lambda x: x.reshape(len(x), -1), nn.Dense(5, bias), nn.relu, nn.Dense(3, bias)]
    module, rng = nn.Sequential(parts), np.random.default_rng(2)
    images = [rng.random((size, 2, 3, 1), dtype=np.float32) for size in (7, 2)]
    params = canonical(module.init(jax.random.key(0), images[0])["params"])
    found, expected = [], []
    for x in images:

        def loss(params: Any = params, x: Any = x) -> Any:
            logits = module.apply({"params": as_tree(params)}, x)
            return cross_entropy(logits, np.arange(len(x)) % 3)

        found.append(layers.trace_layers((nn.Dense,), params, loss))
        expected.append(jax.grad(loss)(params))
        gradient = layers.dense_gradient(found[-1])
        assert set(gradient) == set(params)
        for name, value in expected[-1].items():
            close(gradient[name], value, name)
    product = sum((g * expected[1][name]).sum() for name, g in expected[0].items())
    close(layers.dense_product(*found), product, "product")
    normed = nn.Sequential([*parts[:2], nn.LayerNorm()])
    half = nn.Sequential([parts[0], nn.Dense(5, bias, dtype="bfloat16")])
    made = []
    for module in (normed, half):
        params = canonical(module.init(jax.random.key(0), x)["params"])
        total = lambda p, module=module: module.apply({"params": as_tree(p)}, x).sum()
        made.append(layers.trace_layers((nn.Dense,), params, total))
    assert made[0] is None
    assert {str(d.dtype) for d in made[1].deltas.values()} == {"bfloat16"}


@pytest.mark.ci
@pytest.mark.parametrize("where", ["nowhere", "after", "before", "loss", "keyword", "shape"])
def test_a_weight_that_is_also_used_outside_its_layer(where: str):
    """The layer has only part of the gradient, so nothing is traced; a shape may be read."""
    import jax
    import jax.numpy as jnp
    from flax import linen as nn

    from seqrun.formulas.layers import jax as layers
    from seqrun.formulas.parameters.jax import as_tree, canonical

    class Network(nn.Module):
        """Two dense layers, and a use of the second layer's kernel outside the layer."""

        @nn.compact
        def __call__(self, x: Any) -> Any:
            hidden, out = nn.Dense(4, name="hidden"), nn.Dense(3, name="out")
            y = hidden(x)
            if self.is_initializing() or where in ("nowhere", "loss"):
                return out(y)
            if where == "keyword":
                return out(y) + out(inputs=y)
            kernel = out.variables["params"]["kernel"]
            if where == "shape":
                return out(y) / kernel.shape[1]
            norm = jnp.linalg.norm(kernel)
            return out(y / norm) if where == "before" else out(y) / norm

    module, x = Network(), np.ones((5, 2), np.float32)
    params = canonical(module.init(jax.random.key(0), x)["params"])

    def loss(params: Any) -> Any:
        value = module.apply({"params": as_tree(params)}, x).sum()
        return value + (params["out/kernel"] ** 2).sum() if where == "loss" else value

    found = jax.jit(lambda p: layers.trace_layers((nn.Dense,), p, loss) is None)(params)
    assert bool(found) == (where not in ("nowhere", "shape"))
    if where in ("nowhere", "shape"):
        gradient = layers.dense_gradient(layers.trace_layers((nn.Dense,), params, loss))
        for name, value in jax.grad(loss)(params).items():
            close(gradient[name], value, name)


@pytest.mark.parametrize("rows", [[4, 4, 4], [4, 2, 4], [1, 0, 3], [0, 4, 1], [4, 4, 0]])
def test_set_rows(rows: list[int]):
    """The target has four rows; row number 4 is skipped."""
    import torch

    from seqrun.formulas.torch import set_rows

    target, values = torch.arange(8.0).view(4, 2), torch.arange(6.0).view(3, 2) + 100
    expected = target.clone()
    for row, value in zip(rows, values, strict=True):
        if row < 4:
            expected[row] = value
    set_rows(target, torch.tensor(rows, dtype=torch.int32), values)
    assert target.tolist() == expected.tolist()


def test_one_hot():
    """It agrees with torch's own."""
    import torch

    from seqrun.formulas.torch import one_hot

    y = torch.tensor([2, 0, 4])
    assert one_hot(y, 5).tolist() == torch.nn.functional.one_hot(y, 5).bool().tolist()


# ---- per-sample gradients


KINDS = ["plain", "norm", "cnn", "cnn_norm", "resnet", "no rule"]


def network(backend: str, kind: str) -> tuple[Any, Any, Any]:
    """Return a module for (7, 6, 2) images, with random parameters and statistics."""
    name = {"cnn": ".cnn", "cnn_norm": ".cnn", "resnet": ".resnet"}.get(kind, "")
    backbones = import_module(f"seqrun.backbones{name}.{backend}")
    backbone = {
        "plain": lambda: backbones.MLP(width=5, n_hidden_layers=2),
        "norm": lambda: backbones.MLP(width=5, n_hidden_layers=2, batch_norm=True),
        "no rule": lambda: backbones.MLP(width=5, n_hidden_layers=2, batch_norm=True),
        "cnn": lambda: backbones.CNN(channels=[3], hidden=[5], pool=2),
        "cnn_norm": lambda: backbones.CNN(channels=[3], pool=1, stride=2, batch_norm=True),
        "resnet": lambda: backbones.ResNet18(nf=2),
    }[kind]()
    module = backbone.build((7, 6, 2), 4)
    if backend == "torch":
        import torch

        torch.manual_seed(0)
        for value in (*module.parameters(), *module.buffers()):
            if value.is_floating_point():
                value.data = torch.rand(value.shape) + 0.1 - 0.5 * value.requires_grad
        return module.eval(), None, None
    import jax

    flatten = import_module("seqrun.formulas.parameters.jax").canonical
    variables = module.init(jax.random.key(0), np.zeros((2, 7, 6, 2), np.float32))
    generator = np.random.default_rng(1)
    flat = {k: flatten(v) for k, v in variables.items()}
    for name, array in flat["params"].items():
        flat["params"][name] = generator.uniform(-0.6, 0.6, array.shape).astype(np.float32)
    for name, array in flat.get("batch_stats", {}).items():
        flat["batch_stats"][name] = generator.uniform(0.1, 1, array.shape).astype(np.float32)
    return module, flat["params"], flat.get("batch_stats", {})


def never(*_: Any) -> Any:
    raise AssertionError("no rule was used")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("power", [1, 2])
def test_per_sample_powers_on_torch(kind: str, power: int, monkeypatch: pytest.MonkeyPatch):
    """Compare rules, and vmap in blocks of 3, 3 and 1, with one backward pass per sample."""
    import torch
    from torch.nn.functional import cross_entropy

    from seqrun.formulas.parameters.torch import canonical_names
    from seqrun.formulas.per_sample import torch as per_sample

    monkeypatch.setattr(per_sample, "CHUNK", 3)
    monkeypatch.setattr(per_sample, "PATCHES", 2)
    if kind == "no rule":
        monkeypatch.setattr(per_sample, "_RULES", {})
    else:
        monkeypatch.setattr(per_sample, "_add_by_vmap", never)
    module, _, _ = network("torch", kind)
    x, y = torch.rand(7, 7, 6, 2), torch.arange(7) % 4
    params, _ = canonical_names(module)
    expected = {name: torch.zeros_like(p) for name, p in params.items()}
    for n in range(7):
        loss = cross_entropy(module(x[n : n + 1]), y[n : n + 1])
        gradients = torch.autograd.grad(loss, [*params.values()])
        for name, g in zip(params, gradients, strict=True):
            expected[name] += g.abs() ** power

    def losses(logits: Any, y: Any) -> Any:
        return cross_entropy(logits, y, reduction="none")

    found = per_sample.per_sample_power_sum(module, x, losses, (y,), power)
    assert list(found) == list(expected)
    for name, value in expected.items():
        close(found[name].detach(), value, name)


@pytest.fixture
def threads_of_torch() -> Iterator[Callable[[int], None]]:
    """`torch.set_num_threads`, undone at the end."""
    import torch

    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_per_sample_powers_of_convolutions_are_shared_between_threads(
    threads_of_torch: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
):
    """Calls agree to the bit, and with one thread up to rounding; thread counts are restored."""
    import torch
    from torch.nn.functional import cross_entropy

    from seqrun.formulas.per_sample import torch as per_sample

    monkeypatch.setattr(per_sample, "_add_by_vmap", never)
    module, _, _ = network("torch", "cnn_norm")
    x, y = torch.rand(7, 7, 6, 2), torch.arange(7) % 4
    seen, meet = [], threading.Barrier(1)

    def losses(logits: Any, y: Any) -> Any:
        seen.append((threading.get_ident(), torch.get_num_threads(), len(y)))
        meet.wait(timeout=60)  # no thread finishes before all have recorded
        return cross_entropy(logits, y, reduction="none")

    def failing(logits: Any, y: Any) -> Any:
        raise ArithmeticError

    def powers(losses: Callable[..., Any] = losses) -> dict[str, Any]:
        return per_sample.per_sample_power_sum(module, x, losses, (y,), 2)

    threads_of_torch(1)
    alone = powers()
    assert seen == [(threading.get_ident(), 1, 7)]
    del seen[:]
    meet = threading.Barrier(3)
    threads_of_torch(3)
    first, again = powers(), powers()
    assert torch.get_num_threads() == 3
    with pytest.raises(ArithmeticError):
        powers(failing)
    assert torch.get_num_threads() == 3
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 3
    assert sorted(samples for _, _, samples in seen) == [2, 2, 2, 2, 3, 3]
    assert all(who != threading.get_ident() and count == 1 for who, count, _ in seen)
    for name, value in alone.items():
        close(first[name], value, name)
        np.testing.assert_array_equal(first[name], again[name])


@pytest.mark.ci
def test_per_sample_powers_free_their_objects(threads_of_torch: Callable[[int], None]):
    """Objects of a call are freed without the garbage collector: a Fisher needs many calls."""
    import torch

    from seqrun.formulas.per_sample import torch as per_sample

    module, _, _ = network("torch", "cnn")
    gc.collect()
    gc.disable()
    try:
        for threads in (1, 2):
            threads_of_torch(threads)
            per_sample.per_sample_power_sum(module, torch.rand(3, 7, 6, 2), sums_of_squares, (), 2)
        kept = [o for o in gc.get_objects() if type(o) is per_sample._Taps]
    finally:
        gc.enable()
    assert not kept


def sums_of_squares(logits: Any) -> Any:
    return (logits**2).sum(1)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "kind",
    ["two stems", "detached", "unused", "tied", "normed", "keyword", "hook", "stores", "input"],
)
def test_per_sample_powers_of_unusual_modules(
    kind: str, threads: int, threads_of_torch: Callable[[int], None]
):
    """Compare with one backward pass per sample."""
    import torch
    from torch import nn

    from seqrun.formulas.parameters.torch import canonical_names
    from seqrun.formulas.per_sample import torch as per_sample

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.e = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(2, 3, 3, padding=1)
            self.head = nn.Linear(3 * 4 * 5, 4)
            if kind == "tied":
                self.e.weight = self.c.weight
            if kind == "hook":
                self.c.register_forward_hook(lambda layer, inputs, output: 3 * output)
            if kind == "normed":
                nn.utils.spectral_norm(self.c)

        def forward(self, x: Any) -> Any:
            x = x.permute(0, 3, 1, 2)
            c, e = self.c(input=x) if kind == "keyword" else self.c(x), self.e(x)
            if kind == "stores":
                self.stored = c  # which cannot be copied
            e = {"detached": e.detach(), "unused": c.exp()}.get(kind, e)
            return self.head((c * e).flatten(1))

    torch.manual_seed(0)
    module = Module().eval()
    x = torch.rand(5, 4, 5, 2, requires_grad=kind == "input")
    module(x)  # fills `stored`
    params, _ = canonical_names(module)
    expected = {name: torch.zeros_like(p) for name, p in params.items()}
    for n in range(len(x)):
        loss = sums_of_squares(module(x[n : n + 1])).sum()
        gradients = torch.autograd.grad(loss, [*params.values()], allow_unused=True)
        for name, g in zip(params, gradients, strict=True):
            expected[name] += 0 if g is None else g**2
    threads_of_torch(threads)
    found = per_sample.per_sample_power_sum(module, x, sums_of_squares, (), 2)
    assert list(found) == list(expected)
    for name, value in expected.items():
        close(found[name].detach(), value.detach(), name)


def close(found: Any, expected: Any, name: str) -> None:
    atol = 2e-6 * float(np.abs(np.asarray(expected)).max()) + 1e-12
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=atol, err_msg=name)


@pytest.mark.parametrize(
    ("by_rule", "options"),
    [
        (True, {"kernel_size": (2, 3), "stride": (1, 2), "padding": (1, 0)}),
        (False, {"kernel_size": 2, "dilation": 2}),
        (False, {"kernel_size": 2, "groups": 2}),
        (False, {"kernel_size": 2, "padding": "same"}),
        (False, {"kernel_size": 2, "padding": 1, "padding_mode": "circular"}),
    ],
)
def test_per_sample_powers_of_other_convolutions(by_rule: bool, options: dict[str, Any]):
    """Kernels and strides that are not square, and options that the rule does not support."""
    import torch
    from torch import nn

    from seqrun.formulas.per_sample import torch as per_sample

    torch.manual_seed(0)
    conv = nn.Conv2d(2, 4, **options)
    assert per_sample._has_rule(conv) is by_rule

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv

        def forward(self, x: Any) -> Any:
            return self.conv(x.permute(0, 3, 1, 2)).tanh().mean((2, 3))

    module, x = Network(), torch.rand(5, 7, 6, 2)
    found = per_sample.per_sample_power_sum(module, x, lambda logits: (logits**2).sum(1), (), 2)
    each = [
        torch.autograd.grad((module(x[n : n + 1]) ** 2).sum(), [conv.weight, conv.bias])
        for n in range(5)
    ]
    for name, gradients in zip(("conv/kernel", "conv/bias"), zip(*each, strict=True), strict=True):
        close(found[name].detach(), sum(g**2 for g in gradients), name)


@pytest.mark.parametrize("kind", ["in place", "no scale", "no statistics"])
def test_per_sample_powers_of_other_modules(kind: str):
    """An activation that overwrites a layer's output, and BatchNorm without its usual parts."""
    import torch
    from torch import nn

    from seqrun.formulas.per_sample import torch as per_sample

    torch.manual_seed(0)
    norm = {
        "in place": nn.Identity(),
        "no scale": nn.BatchNorm1d(5, affine=False),
        "no statistics": nn.LayerNorm(5),
    }[kind]
    module = nn.Sequential(
        nn.Flatten(), nn.Linear(6, 5), norm, nn.ReLU(inplace=True), nn.Linear(5, 3)
    ).eval()
    x, y = torch.rand(7, 2, 3, 1), torch.arange(7) % 3
    cross_entropy = nn.functional.cross_entropy

    def losses(logits: Any, y: Any) -> Any:
        return cross_entropy(logits, y, reduction="none")

    found = per_sample.per_sample_power_sum(module, x, losses, (y,), 2)
    first = sum(
        torch.autograd.grad(cross_entropy(module(x[n : n + 1]), y[n : n + 1]), module[1].weight)[0]
        ** 2
        for n in range(7)
    )
    np.testing.assert_allclose(found["1/kernel"].detach(), first, rtol=2e-5, atol=1e-7)


@pytest.mark.ci
@every_backend
@pytest.mark.parametrize("kind", ["twice", "rows"])
def test_per_sample_powers_of_a_layer_without_a_rule(backend: str, kind: str):
    """A layer applied twice, or to several rows of a sample: the gradients add up."""
    x = np.random.default_rng(3).random((5, 3, 2, 1), np.float32)
    found, each = (of_torch if backend == "torch" else of_jax)(kind, x)
    assert len(found) == 2
    for name, value in found.items():
        close(value, sum(g[name] ** 2 for g in each), name)


def of_torch(kind: str, x: np.ndarray) -> tuple[Any, list[Any]]:
    """Return sums of squares, and the gradients of each sample alone, by canonical name."""
    import torch
    from torch import nn

    from seqrun.formulas.parameters.torch import canonical_names
    from seqrun.formulas.per_sample import torch as per_sample

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(*((6, 6) if kind == "twice" else (2, 3)))

        def forward(self, x: Any) -> Any:
            if kind == "twice":
                return self.layer(self.layer(x.flatten(1)).tanh())
            return self.layer(x[..., 0]).tanh().mean(1)

    torch.manual_seed(0)
    module, images = Network(), torch.from_numpy(x)
    params, _ = canonical_names(module)

    def losses(logits: Any) -> Any:
        return (logits**2).sum(1)

    found = per_sample.per_sample_power_sum(module, images, losses, (), 2)
    gradients = [
        torch.autograd.grad(losses(module(image[None])).sum(), [*params.values()])
        for image in images
    ]
    each = [dict(zip(params, (g.numpy() for g in of), strict=True)) for of in gradients]
    return {name: value.detach().numpy() for name, value in found.items()}, each


def of_jax(kind: str, x: np.ndarray) -> tuple[Any, list[Any]]:
    """Return the same for the same network on JAX."""
    import jax
    from flax import linen as nn

    from seqrun.formulas.parameters.jax import as_tree, canonical
    from seqrun.formulas.per_sample import jax as per_sample

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            layer = nn.Dense(6 if kind == "twice" else 3, name="layer")
            if kind == "twice":
                return layer(nn.tanh(layer(x.reshape(len(x), -1))))
            return nn.tanh(layer(x[..., 0])).mean(1)

    module = Network()
    params = canonical(module.init(jax.random.key(0), x)["params"])

    def losses(logits: Any) -> Any:
        return (logits**2).sum(1)

    @jax.jit
    def gradient(params: Any, image: Any) -> Any:
        def loss(params: Any) -> Any:
            return losses(module.apply({"params": as_tree(params)}, image[None])).sum()

        return jax.grad(loss)(params)

    found = per_sample.per_sample_power_sum(module, params, {}, x, losses, (), 2)
    return found, [jax.tree.map(np.asarray, gradient(params, image)) for image in x]


ON_JAX = list(product(("cpu", "default"), (1, 2), KINDS))
QUICK_ON_JAX = [case for case in ON_JAX if case[:2] == ("cpu", 2) or case[2].startswith("cnn")]


@pytest.mark.ci
@pytest.mark.parametrize(
    ("platform", "power", "kind"),
    cases(
        ("cpu", "default"),
        (1, 2),
        KINDS,
        full=[case for case in ON_JAX if case not in QUICK_ON_JAX],
        ci=[("cpu", 2, "resnet")],
    ),
)
def test_per_sample_powers_on_jax(
    kind: str, power: int, platform: str, monkeypatch: pytest.MonkeyPatch
):
    """Compare rules, and vmap, with jax.grad of each sample."""
    import jax
    import optax

    from seqrun.formulas.parameters.jax import as_tree
    from seqrun.formulas.per_sample import jax as per_sample

    monkeypatch.setattr(jax.lax, "platform_dependent", branch(platform))
    if kind == "no rule":
        monkeypatch.setattr(per_sample, "_RULES", {})
    else:
        monkeypatch.setattr(per_sample, "_by_vmap", never)
    module, params, stats = network("jax", kind)
    x = np.random.default_rng(2).random((7, 7, 6, 2), dtype=np.float32)
    y = np.arange(7) % 4

    def losses(logits: Any, y: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(logits, y)

    @jax.jit
    def gradient(params: Any, x: Any, y: Any) -> Any:
        def loss(params: Any) -> Any:
            variables = {"params": as_tree(params), "batch_stats": as_tree(stats)}
            return losses(module.apply(variables, x), y).sum()

        return jax.grad(loss)(params)

    each = [gradient(params, x[n : n + 1], y[n : n + 1]) for n in range(7)]
    found = jax.jit(
        lambda *arrays: per_sample.per_sample_power_sum(module, *arrays, losses, (y,), power)
    )(params, stats, x)
    assert set(found) == set(params)
    for name in params:
        close(found[name], sum(np.abs(np.float64(g[name])) ** power for g in each), name)


def branch(platform: str) -> Callable[..., Any]:
    """Return a jax.lax.platform_dependent that always chooses the branch of `platform`."""

    def chosen(*args: Any, **branches: Any) -> Any:
        return branches[platform](*args)

    return chosen


@pytest.mark.ci
@pytest.mark.parametrize("platform", ["cpu", "default"])
def test_per_sample_powers_in_blocks(platform: str, monkeypatch: pytest.MonkeyPatch):
    """A layer without a rule; 7 samples make two blocks of 3 and one of 1."""
    import jax
    import optax
    from flax import linen as nn

    from seqrun.formulas.parameters.jax import as_tree, canonical
    from seqrun.formulas.per_sample import jax as per_sample

    monkeypatch.setattr(jax.lax, "platform_dependent", branch(platform))
    monkeypatch.setattr(per_sample, "CHUNK", 3)
    layers = [lambda x: x.reshape(len(x), -1), nn.Dense(5), nn.LayerNorm(), nn.Dense(3)]
    module, rng = nn.Sequential(layers), np.random.default_rng(2)
    x = rng.random((7, 2, 3, 1), dtype=np.float32)
    y = np.arange(7) % 3
    params = canonical(module.init(jax.random.key(0), x)["params"])

    def losses(logits: Any, y: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(logits, y)

    @jax.jit
    def gradient(params: Any, x: Any, y: Any) -> Any:
        return jax.grad(lambda p: losses(module.apply({"params": as_tree(p)}, x), y).sum())(params)

    each = [gradient(params, x[n : n + 1], y[n : n + 1]) for n in range(7)]
    found = per_sample.per_sample_power_sum(module, params, {}, x, losses, (y,), 2)
    for name in params:
        expected = sum(np.float64(g[name]) ** 2 for g in each)
        np.testing.assert_allclose(found[name], expected, rtol=2e-5, atol=1e-7, err_msg=name)


# ---- optimizers


def steps_of(backend: str, name: str, gradients: list[float], **options: Any) -> list[float]:
    """Return a single parameter, which starts at 1, after each step."""
    optimizer = getattr(import_module(f"seqrun.optimizers.{backend}"), name)(**options)
    params = to_array(backend, {"w": np.float32([1.0])})
    state, path = optimizer.init(params), []
    for g in gradients:
        hparams = optimizer.hparams()
        params, state = optimizer.update(
            to_array(backend, {"w": np.float32([g])}), state, params, hparams
        )
        path.append(float(to_numpy(params["w"])[0]))
    return path


@every_backend
def test_sgd_by_hand(backend: str):
    assert steps_of(backend, "SGD", [2, 2], lr=0.1) == pytest.approx([0.8, 0.6])
    # v = 2, then 0.5 * 2 + 2 = 3
    momentum = steps_of(backend, "SGD", [2, 2], lr=0.1, momentum=0.5)
    assert momentum == pytest.approx([0.8, 0.5])
    # g + 0.5 v: 2 + 1 = 3, then 2 + 1.5 = 3.5
    nesterov = steps_of(backend, "SGD", [2, 2], lr=0.1, momentum=0.5, nesterov=True)
    assert nesterov == pytest.approx([0.7, 0.35])
    # g + 0.5 w: 2.5, then 2 + 0.375
    decayed = steps_of(backend, "SGD", [2, 2], lr=0.1, weight_decay=0.5)
    assert decayed == pytest.approx([0.75, 0.5125])


@pytest.mark.ci
@every_backend
def test_adam_by_hand(backend: str):
    """Compare with Adam in float64, with coupled weight decay; AdamW would differ at once."""
    options = {"lr": 0.1, "beta1": 0.8, "beta2": 0.9, "eps": 1e-3, "weight_decay": 0.5}
    w, m, v, expected = 1.0, 0.0, 0.0, []
    for t, gradient in enumerate([2.0, -1.0, 0.5], 1):
        g = gradient + 0.5 * w
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g**2
        w -= 0.1 * (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.9**t)) + 1e-3)
        expected.append(w)
    assert steps_of(backend, "Adam", [2.0, -1.0, 0.5], **options) == pytest.approx(expected, 1e-5)
