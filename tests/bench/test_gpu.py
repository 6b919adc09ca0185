"""The GPU part of `make bench`: its code runs on the CPU, and without a GPU its rows say so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from seqrun.cli.listing import CONF
from seqrun.system import num_cores

ROOT = CONF.parent
SMALL = "Setting(device='cpu', digits=True, samples=30), 1, 1, (1, 2), ('hand_written', 'naive')"
NO_GPU = "Setting(device='cuda', digits=True), 1, 1, (1, 2)"


def rows(arguments: str) -> list[list[Any]]:
    """Return the rows that the part makes in a new process."""
    source = "import json, gpu; from rotated_mnist_mlp import Setting; "
    source += f"print(json.dumps(gpu.rows({arguments})))"
    path = [str(ROOT / "bench"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", source]
    done = subprocess.check_output(command, cwd=ROOT, env=environment)
    return json.loads(done.splitlines()[-1])


@pytest.mark.ci
@pytest.mark.full
def test_path_runs_on_the_cpu():
    """Both backends' loops are measured, and seeds in one program."""
    found = rows(SMALL)
    threads = [f", {n} thread(s)" for n in sorted({1, num_cores()})]
    assert [what for what, _, _ in found] == [
        *(f"hand-written loop, torch, naive{of}, steps/s" for of in threads),
        "seqrun torch, naive, 1 thread(s), steps/s",
        *(f"hand-written jit(scan), jax, naive{of}, steps/s" for of in threads),
        "seqrun jax, naive, 1 thread(s), steps/s",
        "Rotated MNIST naive, jax, 1 seed(s) in one program, runs/s",
        "Rotated MNIST naive, jax, 2 seed(s) in one program, runs/s",
    ]
    assert all(float(numbers.split(" ")[0]) > 0 for _, numbers, _ in found)
    ours = [told for what, _, told in found if what.startswith("seqrun")]
    assert [told.split(" of ")[1] for told in ours] == ["hand-written"] * 2
    assert all("x those of 1 seed(s)" in told for _, _, told in found[-2:])


@pytest.mark.ci
def test_rows_without_a_gpu_say_so():
    """Every row that would be measured is there, with nothing measured."""
    found = rows(NO_GPU)
    assert {(numbers, told) for _, numbers, told in found} == {("not run: no GPU here", "")}
    names = [what for what, _, _ in found]
    assert len(set(names)) == len(names)
    for what in ("seqrun torch, agem compiled, steps/s", "seqrun jax, ewc, steps/s"):
        assert what in names
    assert names[-1] == "Rotated MNIST naive, jax, 2 seed(s) in one program, runs/s"
