"""Convolutional backbones: published parameter counts, sizes, and layers by hand."""

from __future__ import annotations

from math import sqrt
from typing import Any

import jax
import numpy as np
import pytest
import torch
from experiments import BACKENDS, build, component, every_backend
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, ResNet

from seqrun.backbones.base import draw_initial_weights, multiply_adds
from seqrun.backbones.cnn.jax import max_pool
from seqrun.checks import ConfigError
from seqrun.formulas.parameters.torch import canonical_names, to_canonical
from seqrun.plan import RandomStreams

CIFAR = (32, 32, 3)
CONVOLUTIONAL = ("cnn", "cnn_lamaml", "resnet18", "resnet18_thin")


def make_backbone(name: str, backend: str = "torch", **keys: Any) -> Any:
    """Return a backbone with the options of conf/, changed by `keys`."""
    kind, shipped = component("backbone", name, backend)
    return kind(**shipped | keys)


def shapes_of(backbone: Any, images: tuple[int, int, int], classes: int) -> dict[str, tuple]:
    """Return canonical name -> shape of every parameter and statistic of a network."""
    module = backbone.build(images, classes)
    if backbone.backend == "torch":
        params, stats = canonical_names(module)
        return {n: tuple(to_canonical(v, n).shape) for n, v in (params | stats).items()}
    from seqrun.formulas.parameters.jax import canonical

    sample = jax.ShapeDtypeStruct((2, *images), np.float32)
    made = jax.eval_shape(lambda x: module.init(jax.random.key(0), x), sample)
    named = canonical(made["params"]) | canonical(made.get("batch_stats", {}))
    return {name: tuple(value.shape) for name, value in named.items()}


def parameters(shapes: dict[str, tuple]) -> int:
    return sum(int(np.prod(s)) for n, s in shapes.items() if not n.endswith(("/mean", "/var")))


@pytest.mark.ci
@pytest.mark.parametrize(
    ("name", "keys", "classes", "images", "count"),
    [
        ("resnet18", {}, 10, CIFAR, 11_173_962),  # as in pytorch-cifar and Mammoth
        # 3 x 3: stem 540, blocks 14,400 + 50,400 + 201,600 + 806,400; 1 x 1: 16,800; norms 3,000;
        # classifier 16,100: the 1.1 million of GEM and A-GEM
        ("resnet18_thin", {}, 100, CIFAR, 1_109_240),
        # 3 x 9 + 1 = 28 times 160; 2 of (1440 + 1) x 160; (2560 + 1 + 321 ) x 320; 321 x 100
        ("cnn_lamaml", {}, 100, CIFAR, 28 * 160 + 2 * 1441 * 160 + 2882 * 320 + 32_100),
        (
            "cnn_lamaml",
            {"channels": [160] * 4, "hidden": [640, 640]},
            200,
            (64, 64, 3),
            28 * 160 + 3 * 1441 * 160 + (2561 + 641) * 640 + 641 * 200,
        ),
        ("cnn", {}, 10, CIFAR, 28 * 32 + 289 * 64 + 4097 * 128 + 1290),
        ("cnn", {"batch_norm": True, "hidden": []}, 10, (8, 8, 1), 288 + 64 + 18_432 + 128 + 2570),
    ],
)
def test_parameter_counts(name, keys, classes, images, count):
    """Published counts, or sums by hand; the same names and shapes on both backends."""
    by_torch, by_jax = (
        shapes_of(make_backbone(name, b, **keys), images, classes) for b in BACKENDS
    )
    assert by_torch == by_jax
    assert parameters(by_torch) == count


@pytest.mark.parametrize("name", CONVOLUTIONAL)
@pytest.mark.parametrize("images", [CIFAR, (15, 11, 2)])
def test_multiply_adds(name, images):
    """They agree with counts from the output sizes of torch's layers."""
    backbone = make_backbone(name)
    module = backbone.build(images, 10).eval()
    counted = 0

    def count(layer: Any, _: Any, output: Any) -> None:
        nonlocal counted
        kernel = layer.weight[0].numel()
        counted += output[0].numel() * kernel

    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(count)
    module(torch.zeros(1, *images))
    shapes = shapes_of(backbone, images, 10)
    assert multiply_adds(shapes, images, backbone.convolutions(images)) == counted
    wrapped = {f"network/{n}": s for n, s in shapes.items()}
    assert multiply_adds(wrapped, images, backbone.convolutions(images)) == counted


def with_noise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Fill every parameter and statistic of a torch module with noise; return the module."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in [*module.parameters(), *module.buffers()]:
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=noise) * 0.2 + 0.01)
    return module


@pytest.mark.ci
def test_resnet_is_torchvisions_with_another_stem():
    """Outputs and statistics agree in double precision."""
    ours = with_noise(make_backbone("resnet18", nf=64).build(CIFAR, 10)).double()
    theirs = ResNet(BasicBlock, [2, 2, 2, 2], num_classes=10)
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool = nn.Identity()
    theirs = theirs.double()
    # Both networks register their layers in the same order, so weights can be copied in order.
    with torch.no_grad():
        values = ours.state_dict().values(), theirs.state_dict().values()
        for our_value, their_value in zip(*values, strict=True):
            their_value.copy_(our_value)
    x = torch.rand(3, 16, 16, 3, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    torch.testing.assert_close(ours(x), theirs(x.permute(0, 3, 1, 2)))
    for (name, our_value), their_value in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(our_value, their_value, msg=name)
    ours.eval()
    theirs.eval()
    torch.testing.assert_close(ours(x), theirs(x.permute(0, 3, 1, 2)))


def test_cnn_lamaml_is_the_authors_network():
    """Layer by layer, except for the order in which the last map is flattened."""
    ours = with_noise(make_backbone("cnn_lamaml").build(CIFAR, 100))
    x = torch.rand(2, *CIFAR, generator=torch.Generator().manual_seed(1))
    h = x.permute(0, 3, 1, 2)
    for i in range(3):
        conv = ours.get_submodule(f"conv_{i}")
        h = F.relu(F.conv2d(h, conv.weight, conv.bias, stride=2, padding=1))
    assert h.shape == (2, 160, 4, 4)
    h = h.permute(0, 2, 3, 1).reshape(2, 2560)
    for dense in (ours.hidden_0, ours.hidden_1):
        h = F.relu(F.linear(h, dense.weight, dense.bias))
    assert h.shape == (2, 320)
    torch.testing.assert_close(ours.encode(x), h)
    torch.testing.assert_close(ours(x), ours.classify(h))
    assert make_backbone("cnn_lamaml").initialization == "kaiming_normal"


def test_cnn_layer_by_layer():
    """With every option changed from its default, except `pool` and `initialization`."""
    keys = {"kernel_size": 5, "stride": 2, "channels": [4, 6], "hidden": [7]}
    ours = with_noise(
        make_backbone("cnn", batch_norm=True, dropout=0.5, **keys).build((28, 40, 1), 3)
    ).eval()
    x = torch.rand(2, 28, 40, 1, generator=torch.Generator().manual_seed(1))
    h = x.permute(0, 3, 1, 2)
    for i in range(2):
        h = F.conv2d(h, ours.get_submodule(f"conv_{i}").weight, stride=2, padding=2)
        h = F.max_pool2d(F.relu(ours.get_submodule(f"norm_{i}")(h)), 2)
    assert h.shape == (2, 6, 2, 2)  # 28 -> 14 -> 7 -> 4 -> 2, 40 -> 20 -> 10 -> 5 -> 2
    h = F.relu(ours.hidden_0(h.permute(0, 2, 3, 1).reshape(2, 24)))
    torch.testing.assert_close(ours(x), ours.classify(h))


def _pooled(x: Any, weights: Any, side: int) -> tuple[Any, Any]:
    """Return the max pool, and the gradient of its weighted sum."""
    pooled, backwards = jax.vjp(lambda x: max_pool(x, side), x)
    return pooled, backwards(weights)[0]


@pytest.mark.ci
def test_max_pool_gives_its_gradient_to_the_first_maximum():
    """As in torch, while JAX's own maximum would split it; incomplete windows are left out."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 3, (2, 7, 8, 3)).astype(np.float32)
    for side in (1, 2, 3):
        height, width = 7 // side, 8 // side
        weights = rng.random((2, height, width, 3)).astype(np.float32)
        pooled, gradient = jax.jit(_pooled, static_argnums=2)(x, weights, side)
        given = torch.tensor(x, requires_grad=True)
        expected = F.max_pool2d(given.permute(0, 3, 1, 2), side).permute(0, 2, 3, 1)
        np.testing.assert_array_equal(pooled, expected.detach())
        expected.backward(torch.from_numpy(weights))
        np.testing.assert_allclose(gradient, given.grad, rtol=1e-6)


@pytest.mark.parametrize("name", ["cnn", "resnet18_thin"])
def test_initial_weights_by_kind(name):
    """Kernels are HWIO, so fan_in is H W I. Scales and biases of norms are not drawn."""
    shapes = shapes_of(make_backbone(name), CIFAR, 10)
    shapes = {n: s for n, s in shapes.items() if not n.endswith(("/mean", "/var"))}
    normal = draw_initial_weights(shapes, "kaiming_normal", RandomStreams(0))
    uniform = draw_initial_weights(shapes, "torch_default", RandomStreams(0))
    for layer, kernel in ((n, s) for n, s in shapes.items() if n.endswith("kernel")):
        fan_in = np.prod(kernel[:-1])
        if np.prod(kernel) > 4000:
            assert normal[layer].std() == pytest.approx((2 / fan_in) ** 0.5, rel=0.05)
        assert abs(uniform[layer]).max() == pytest.approx(fan_in**-0.5, rel=0.05)
    norms = [n.removesuffix("/scale") for n in shapes if n.endswith("/scale")]
    assert len(norms) == (20 if name == "resnet18_thin" else 0)
    assert all((uniform[f"{n}/scale"] == 1).all() for n in norms)
    assert all((uniform[f"{n}/bias"] == 0).all() for n in norms)


def test_zero_head():
    """Like `xavier_uniform`, but with a zero classifier, so that all logits are 0 at first."""
    shapes = {
        "hidden_0/kernel": (4, 3),
        "hidden_0/bias": (3,),
        "classifier/kernel": (3, 2),
        "classifier/bias": (2,),
    }
    plain = draw_initial_weights(shapes, "xavier_uniform", RandomStreams(0))
    drawn = draw_initial_weights(shapes, "xavier_uniform_zero_head", RandomStreams(0))
    for name, value in drawn.items():
        expected = np.zeros_like(value) if name.startswith("classifier") else plain[name]
        np.testing.assert_array_equal(value, expected)
    assert plain["classifier/kernel"].any() and plain["hidden_0/kernel"].any()


def test_bound_of_xavier_uniform():
    """sqrt(6 / (fan_in + fan_out)); both fans of a convolution count its receptive field."""
    bounds = {
        "dense/kernel": ((200, 100), sqrt(6 / 300)),
        "conv/kernel": ((3, 5, 16, 40), sqrt(6 / (15 * 16 + 15 * 40))),
    }
    shapes = {name: shape for name, (shape, _) in bounds.items()}
    shapes |= {"dense/bias": (100,), "conv/bias": (40,)}
    drawn = draw_initial_weights(shapes, "xavier_uniform", RandomStreams(0))
    for name, (_, bound) in bounds.items():
        # the largest of n uniform draws is on average 1/n of the bound below it
        assert 0.998 * bound < abs(drawn[name]).max() <= np.float32(bound)
        assert drawn[name].std() == pytest.approx(bound / sqrt(3), rel=0.03)
    assert not drawn["dense/bias"].any() and not drawn["conv/bias"].any()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"channels": []}, "channels=[]: must be a list of at least 1 integers >= 1"),
        ({"channels": 3}, "channels=3: must be a list"),
        ({"channels": [8, 0]}, "channels[1]=0: must be an integer >= 1"),
        ({"hidden": [1.5]}, "hidden[0]=1.5: must be an integer >= 1"),
        ({"kernel_size": 2}, "kernel_size=2: must be an odd integer >= 1"),
        ({"stride": 0}, "stride=0: must be an integer >= 1"),
        ({"pool": 0}, "pool=0: must be an integer >= 1"),
        ({"dropout": 1.0}, "dropout=1.0: must be a number in [0, 1)"),
        ({"batch_norm": 1}, "batch_norm=1: must be true or false"),
        ({"initialization": "kaiming"}, "did you mean kaiming_normal"),
    ],
)
def test_refusals(keys, message):
    with pytest.raises(ConfigError) as caught:
        make_backbone("cnn", **keys)
    assert message in str(caught.value)


@pytest.mark.parametrize("keys", [{"nf": 0}, {"dropout": -0.1}])
def test_refusals_of_the_resnet(keys):
    (key,) = keys
    with pytest.raises(ConfigError, match=f"{key}="):
        make_backbone("resnet18", **keys)


@every_backend
def test_too_small_images_are_refused_before_data_are_read(backend):
    """8 x 8 digits fit 3 blocks, not 4; a ResNet takes images of any size."""
    build("naive", backend, network="cnn", backbone={"channels": [4, 4, 4]})
    with pytest.raises(ConfigError) as caught:
        build("naive", backend, network="cnn", backbone={"channels": [4, 4, 4, 4]})
    message = "backbone.channels=[4, 4, 4, 4]: must have at most 3 entries for images of 8 x 8"
    assert message in str(caught.value)
    with pytest.raises(ConfigError, match="backbone.channels"):
        make_backbone("cnn", backend).build((3, 32, 1), 10)
    module = make_backbone("resnet18", nf=1).build((1, 3, 2), 10).eval()
    assert module(torch.zeros(2, 1, 3, 2)).shape == (2, 10)
