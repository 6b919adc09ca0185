"""The roofline of a training step: its products and bytes, by hand and by autograd."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import numpy as np
import pytest

from seqrun.cli.listing import CONF


@pytest.fixture(scope="module")
def roofline() -> Any:
    """Import bench/roofline.py, whose folder is not a package."""
    path = CONF.parent / "bench/roofline.py"
    spec = importlib.util.spec_from_file_location("roofline_of_bench", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_work_of_a_small_step_by_hand(roofline: Any):
    """Batch 4, sizes 2-3-5: the first layer's inputs get no gradient."""
    assert roofline.products(4, (2, 3, 5)) == [
        (4, 2, 3),
        (4, 3, 5),
        (3, 4, 5),
        (4, 5, 3),
        (2, 4, 3),
    ]
    assert roofline.flops(4, (2, 3, 5)) == 2 * (24 + 60 + 60 + 60 + 24)
    parameters = 2 * 3 + 3 + 3 * 5 + 5
    assert roofline.num_parameters((2, 3, 5)) == parameters
    moved = roofline.traffic((2, 3, 5))
    assert moved == {
        "parameters read by the forward pass": 4 * parameters,
        "parameters read by the backward pass": 4 * 3 * 5,
        "gradients written": 4 * parameters,
        "gradients read": 4 * parameters,
        "parameters updated": 8 * parameters,
    }
    assert roofline.update_bytes((2, 3, 5)) == 12 * parameters


def test_rate_adds_products_and_traffic(roofline: Any):
    """The faster library's seconds, and bytes over bandwidth."""
    found = roofline.Roofline(numpy=0.3, torch=0.1, bandwidth=1000.0)
    assert found.rate(400) == pytest.approx(1 / (0.1 + 0.4))


@pytest.mark.parametrize("library", ("numpy", "torch"))
def test_products_are_those_of_a_step(roofline: Any, library: str):
    """All matrix products of autograd's forward and backward passes, with either library."""
    import torch

    step = roofline.Products(4, (7, 3, 6, 5))
    shapes = [(a.shape[0], a.shape[1], b.shape[1]) for a, b, _ in step.calls]
    assert shapes == roofline.products(4, (7, 3, 6, 5))
    (step.by_numpy if library == "numpy" else step.by_torch())()
    weights = [torch.from_numpy(w.copy()).requires_grad_() for w in step.weights]
    output = torch.from_numpy(step.values[0])
    for weight in weights:
        output = output @ weight
    output.backward(torch.from_numpy(step.slopes[-1]))
    np.testing.assert_allclose(step.values[-1], output.detach().numpy(), rtol=1e-5, atol=1e-6)
    for weight, gradient in zip(weights, step.gradients, strict=True):
        np.testing.assert_allclose(gradient, weight.grad.numpy(), rtol=1e-5, atol=1e-6)
