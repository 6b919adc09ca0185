"""What all tests share: helper modules beside this file, and one compilation cache per session."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # `from experiments import build`

# Many small runs compile the same JAX program: once a session is enough. The environment is read
# when jax is first imported, here or in a process that a test starts.
_FOLDER = "JAX_COMPILATION_CACHE_DIR"
_CACHE = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


# What `make test` leaves to others, besides what is marked where it stands: tests that start many
# processes or compile for long, to .ci/run and `make ci`; and tests whose sibling on the other
# backend, or with another option, says the same, to `make test-all`.
CI = (
    r"slurm/test_slurm",
    r"bench/test_gpu",
    r"sweeps/test_(killed|search|multirun)",
    r"runs/test_interruption",
    r"reliability/test_(signals|growth|configurations)",
    r"loggers/test_trackers",
    r"runs/test_seeds\.py::(?!test_the_rule)",
    r"vectorized/test_(members|seeds_in_one_program)",
    r"training/test_compiled\.py::test_(a_compiled|a_run_tells|what_cannot)",
    r"parity/test_parity\.py::test_twins.*\[(lamaml|kcl|agem|icarl|mcsgd|derpp)-momentum",
    r"parity/test_parity\.py::test_twins.*\[ewc-class",
    r"sweeps/test_files",
    r"reliability/test_faults\.py::test_a_process",
    r"compatibility/test_earlier_runs\.py::test_a_stopped.*\[(?!er-torch|ewc_adam-torch)",
    r"formulas/test_shared\.py::test_per_sample_powers_on_jax\[cpu-2-resnet",
    r"report/test_aggregate\.py::test_a_run_of_two_seeds",
    r"runs/test_resume\.py::test_stopped_within_tasks\[(er|icarl)-jax",
)
FULL = (
    r"runs/test_resume\.py::test_stopped_within_tasks\[(naive|derpp|kcl|mcsgd|lfl|lamaml)-jax",
    r"parity/test_parity\.py::test_twins.*\[(?!ewc|er-)\w+-batch_norm",
    r"parity/test_parity\.py::test_twins.*\[ewc-(exact|running)",
    r"parity/test_parity\.py::test_curve_is_golden\[(lamaml|kcl|agem|icarl|mcsgd)-jax",
    r"runs/test_interruption\.py::test_a_signal_costs_no_bit\[(2|15)\]",
    r"runs/test_seeds\.py::test_stopped_and_continued\[15\]",
    r"runs/test_seeds\.py::test_processes_give.*\[jax",
    r"training/test_training\.py::test_the_same_run_twice.*\[ewc-jax",
    r"training/test_training\.py::test_when_the_optimizer_starts_afresh\[jax",
    r"algorithms/test_\w+\.py::test_(lambda_zero|a_coefficient_above_zero|alpha_of_zero).*\[jax",
    r"algorithms/test_er\.py::test_reduces_to_naive_with_an_empty_memory\[jax",
    r"algorithms/test_(ewc|online_ewc|kcl|lfl)\.py::test_(the_|scalars|heads).*\[jax",
    r"algorithms/test_(?!naive)\w+\.py::test_\w*by_hand.*\bjax",
    r"algorithms/test_agem\.py::test_first_task_is_naive\[jax",
    r"conformance/test_learning\.py::test_ewc_forgets_less_than_naive\[jax-seeds1",
    r"formulas/test_shared\.py::test_per_sample_powers_on_jax\[default-2-(?!cnn)",
    r"formulas/test_shared\.py::test_per_sample_powers_on_jax\[(cpu|default)-1-(?!cnn)",
    r"parity/test_parity\.py::test_compiled_chunks.*\[(?!naive|ewc|er-)\w+-momentum",
    r"parity/test_parity\.py::test_watching.*\[lamaml",
    r"parity/test_parity\.py::test_twins_agree_at_every_step\[(?!naive|ewc|er-|icarl)\w+-class",
    r"callbacks/test_stability_gap\.py::test_looking_changes_no_bit\[er-jax",
    r"backbones/test_wrap\.py::test_noise_in_the_module_depends_on_the_run_only\[(linen|nnx)",
    r"backbones/test_twins\.py::test_dropout_depends_on_the_run_only\[cnn-jax",
    r"algorithms/test_(der|lfl|agem|lamaml)\.py::test_reduces_to_naive\[jax",
    r"algorithms/test_mcsgd\.py::test_twins_agree\[",
    r"algorithms/test_independent\.py::test_twins_agree\[",
    r"algorithms/test_replay\.py::test_a_method_with_every_policy.*jax",
    r"training/test_augmentation\.py::test_steps_get_what_was_planned\[derpp-jax",
    r"bench/test_gpu\.py::test_path_runs_on_the_cpu",
    r"training/test_donation.*\[lfl",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark them, before tests are chosen by their marks."""
    for item in items:
        for mark, patterns in (("ci", CI), ("full", FULL)):
            if any(re.search(pattern, item.nodeid) for pattern in patterns):
                item.add_marker(mark)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that `make golden` uses."""
    parser.addoption(
        "--write-golden", action="store_true", help="write tests/parity/golden.json anew"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Start an empty cache; workers of one session share it."""
    if not hasattr(config, "workerinput"):
        os.environ |= _CACHE | {_FOLDER: tempfile.mkdtemp(prefix="seqrun-tests-")}


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the cache."""
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ[_FOLDER], ignore_errors=True)
