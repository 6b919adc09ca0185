"""ER, DER, DER++, A-GEM and iCaRL end where independent programs in float64 end."""

from __future__ import annotations

import pytest
from independent_programs import replay as programs
from independent_programs.product import CLASS, compare, on_both, on_both_by_default, product

every_observe = pytest.mark.parametrize(
    ("observe", "epochs"),
    [("every_epoch", 2), pytest.param("first_epoch", 1, marks=pytest.mark.full)],
)

MEMORY = {"memory_size": 15, "memory_batch_size": 8}


@on_both
def test_er(optimizer: str, backend: str):
    """One mean over both batches, then the write."""
    run = product("er", backend, optimizer, **CLASS, **MEMORY)
    compare(programs.er, run, optimizer, memory_size=15)


@on_both
@every_observe
def test_der(observe: str, epochs: int, optimizer: str, backend: str):
    """z' are the logits of the forward that saw the sample."""
    run = product("der", backend, optimizer, **CLASS, **MEMORY, alpha=0.5, observe=observe)
    compare(programs.der, run, optimizer, memory_size=15, alpha=0.5, epochs=epochs)


@pytest.mark.ci
@on_both_by_default
@every_observe
def test_derpp(observe: str, epochs: int, optimizer: str, backend: str):
    """And the labels of a second batch."""
    options = {"alpha": 0.3, "beta": 0.7}
    run = product("derpp", backend, optimizer, **CLASS, **MEMORY, **options, observe=observe)
    compare(programs.der, run, optimizer, memory_size=15, **options, epochs=epochs)


@on_both
@pytest.mark.parametrize("algo", ["der", "derpp"])
def test_by_default_every_epoch_is_observed(algo: str, optimizer: str, backend: str):
    """As the authors' loop does."""
    options = {"alpha": 0.3} | ({"beta": 0.7} if algo == "derpp" else {})
    run = product(algo, backend, optimizer, **CLASS, **MEMORY, **options)
    compare(programs.der, run, optimizer, memory_size=15, **options)


@pytest.mark.ci
@on_both_by_default
def test_agem(optimizer: str, backend: str):
    """The projection."""
    options = {"per_task_memory_samples": 10, "memory_batch_size": 10}
    run = product("agem", backend, optimizer, **CLASS, **options)
    compare(programs.agem, run, optimizer)


@on_both
@pytest.mark.parametrize("moves", [True, False])
def test_agem_with_batch_norm(moves: bool, optimizer: str, backend: str):
    """The reference pass moves the running statistics too, or leaves them alone.

    Before a BatchNorm the gradient of a bias is 0, and float32 leaves about 1e-9 of it, which Adam
    would turn into steps of its own: `eps` is large beside that.
    """
    eps = {"eps": 1e-3} if optimizer == "adam" else {}
    setting = {"backbone": {"batch_norm": True}, "optimizer_options": eps}
    options = {"per_task_memory_samples": 10, "memory_batch_size": 10}
    option = {"reference_updates_statistics": moves}
    run = product("agem", backend, optimizer, **CLASS, **setting, **options, **option)
    compare(programs.agem, run, optimizer, optimizer_options=eps, **option)


@pytest.mark.ci
@on_both_by_default
def test_icarl(optimizer: str, backend: str):
    """Exemplars too are chosen by the program itself."""
    run = product("icarl", backend, optimizer, **CLASS, memory_size=25)
    compare(programs.icarl, run, optimizer, learner=programs.ICaRL, memory_size=25)
