"""Hundreds of malformed configurations, records and checkpoints: each is refused cleanly.

A mutation may still be a valid value: it is then accepted, and the result must be usable. Any error
but the reader's own is a failure. Archives are tried in tests/benchmarks/test_archive.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from experiments import build
from reliability.mutations import FILES, HOSTILE, places, replaced, without
from reliability.small_runs import config_of

from seqrun.callbacks import (
    CheckpointCallback,
    EarlyStoppingCallback,
    MetricCallback,
    StabilityGapCallback,
    TimingCallback,
)
from seqrun.checks import ConfigError
from seqrun.config import build as experiment
from seqrun.config.hash import config_hash
from seqrun.loggers import LocalLogger, TensorBoardLogger, WandbLogger
from seqrun.records.checkpoint import (
    FOLDER,
    STATE_FILE,
    TENSORS_FILE,
    Checkpoint,
    CheckpointError,
    _checksum,
    latest,
    load,
    save,
)
from seqrun.records.results import RecordError, Results
from seqrun.runs import runner
from seqrun.training import resume
from seqrun.training.trainer import Trainer

CONFIGS = [("algo=er",), ("algo=ewc", "benchmark=split_digits", "optimizer=adam")]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Complete a run; return its directory and its config hash."""
    directory = tmp_path_factory.mktemp("runs") / "run"
    runner.run_experiment(config_of(*CONFIGS[0]), directory)
    return directory, config_hash(config_of(*CONFIGS[0]))


def try_configurations(overrides: tuple[str, ...], every: int) -> tuple[int, dict[Any, str]]:
    """Replace each key by hostile values (every n-th, starting in turn), and leave it out.

    Returns:
        Number of cases refused, and (path, case) -> fault of cases that were not refused cleanly.
    """
    config = config_of(*overrides)
    refused, strange = 0, {}
    for number, path in enumerate(places(config)):
        values = HOSTILE[number % every :: every]
        cases = [(repr(by), replaced(config, path, by)) for by in values]
        cases.append(("left out", without(config, path)))
        for told, case in cases:
            try:
                experiment.check(case)
            except ConfigError as error:
                refused += 1
                if "\n" in str(error):
                    strange[path, told] = "several lines"
            except Exception as error:
                strange[path, told] = f"{type(error).__name__}: {error}"
    return refused, strange


@pytest.mark.ci
def test_configurations():
    """A ConfigError of one line, or the parts are built."""
    refused, strange = try_configurations(CONFIGS[0], every=4)
    assert not strange, "\n".join(f"{k}: {v}" for k, v in strange.items())
    assert refused >= 300


@pytest.mark.full
@pytest.mark.parametrize("overrides", CONFIGS)
def test_all_configurations(overrides: tuple[str, ...]):
    """Each of the values at each key."""
    refused, strange = try_configurations(overrides, every=1)
    assert not strange, "\n".join(f"{k}: {v}" for k, v in strange.items())
    assert refused >= 1200


def try_records(run: Path, directory: Path, every: int) -> int:
    """Read damaged and mutated records; return how many were refused. The others are usable."""
    text = (run / "results.json").read_text(encoding="utf-8")
    record = json.loads(text)
    rng = np.random.default_rng(0)
    texts = [text[: int(n)] for n in rng.integers(0, len(text) - 5, 20)]
    texts += ["", "null", "[]", "{}", "[" * 100_000, "NaN", "\ufeff{}", text.replace(":", "=", 1)]
    for number, path in enumerate(places(record)):
        values = HOSTILE[number % every :: every]
        texts += [json.dumps(replaced(record, path, by)) for by in values]
        texts.append(json.dumps(without(record, path)))
    contents = [text.encode() for text in texts]
    contents += [b"\xff\xfe\x00", b"\x00" * 100, text.encode("utf-16")]
    refused = 0
    for content in contents:
        (directory / "results.json").write_bytes(content)
        try:
            results = Results.read(directory)
        except RecordError as error:
            refused += 1
            assert str(directory) in str(error)
            continue
        json.dumps(results.as_dict(), allow_nan=False)
        assert not results.runs or np.nanmax(results.mean_matrix, initial=0) <= 1
    return refused


@pytest.mark.ci
def test_records(run: tuple[Path, str], tmp_path: Path):
    """Entries of results.json with hostile values, left out, cut off and damaged."""
    assert try_records(run[0], tmp_path, every=5) >= 150


@pytest.mark.full
def test_all_records(run: tuple[Path, str], tmp_path: Path):
    """Every entry with every value."""
    assert try_records(run[0], tmp_path, every=1) >= 600


def write(folder: Path, state: Mapping[str, Any], tensors: bytes, *, sign: bool = True) -> None:
    """Write a checkpoint as an attacker would; with `sign`, its checksums are valid."""
    folder.mkdir(parents=True, exist_ok=True)
    state = dict(state)
    if sign:
        state.pop("state_sha256", None)
        state["sha256"] = hashlib.sha256(tensors).hexdigest()
        state["state_sha256"] = _checksum(json.loads(json.dumps(state)))
    (folder / STATE_FILE).write_text(json.dumps(state), encoding="utf-8")
    (folder / TENSORS_FILE).write_bytes(tensors)


def stored(run: tuple[Path, str]) -> tuple[dict[str, Any], bytes]:
    """Return state.json and the tensors of a run's last checkpoint."""
    folder = max((run[0] / FOLDER).iterdir())
    return json.loads((folder / STATE_FILE).read_text(encoding="utf-8")), (
        folder / TENSORS_FILE
    ).read_bytes()


@pytest.mark.parametrize("name", FILES)
def test_tensor_files(name: str, run: tuple[Path, str], tmp_path: Path):
    """Each is refused by its content alone, and the run continues from the one before."""
    state, tensors = stored(run)
    write(tmp_path / FOLDER / "000000001", state, tensors)
    write(tmp_path / FOLDER / "000000002", state, FILES[name])
    with pytest.raises(CheckpointError, match="000000002"):
        load(tmp_path / FOLDER / "000000002", config_hash=run[1])
    found, wrong = latest(tmp_path, config_hash=run[1])
    assert found is not None and len(wrong) == 1


def test_any_damage_of_a_checkpoint_is_seen(run: tuple[Path, str], tmp_path: Path):
    """Whether one bit of a file is flipped or its end is cut off."""
    state, tensors = stored(run)
    text = json.dumps(state, indent=1).encode()
    rng = np.random.default_rng(1)
    for size, other in ((len(tensors), 0), (len(text), 1)):
        for n, place in enumerate(rng.integers(0, size, 60).tolist()):
            damaged = [bytearray(tensors), bytearray(text)]
            if n % 4 == 0:
                del damaged[other][place:]
            else:
                damaged[other][place] ^= 1 << int(rng.integers(7))
            tmp_path.joinpath(TENSORS_FILE).write_bytes(damaged[0])
            tmp_path.joinpath(STATE_FILE).write_bytes(damaged[1])
            try:
                found = load(tmp_path, config_hash=run[1])
            except CheckpointError:
                continue
            same = json.loads(damaged[1]) == state  # white space, say
            assert same and found.arrays, f"byte {place} of file {other}"
            assert damaged[0] == tensors, f"byte {place} of the tensors"


def prepared() -> Any:
    """Set up an algorithm to continue a checkpoint of ER."""
    algorithm = build("er", "torch", training={"epochs_per_task": 2})
    Trainer(algorithm).setup()
    return algorithm


def restore(checkpoint: Checkpoint, algorithm: Any) -> None:
    """Restore progress and arrays, as `fit` does."""
    resume.restore_progress(checkpoint, algorithm)
    resume.restore_arrays(checkpoint, algorithm)


@pytest.mark.ci
def test_states_of_checkpoints(tmp_path: Path):
    """Every counter with every hostile value and a valid checksum is refused or usable."""
    from safetensors.numpy import save

    donor = build("er", "torch", training={"epochs_per_task": 2})
    donor.fit()
    whole = Trainer(donor).checkpoint()
    tensors = save({n: np.array(a, order="C") for n, a in whole.arrays.items()})
    state = {"schema": 1, "config_hash": "abc", **whole.state}
    write(tmp_path, state, tensors)
    algorithm = prepared()
    restore(load(tmp_path, config_hash="abc"), algorithm)
    refused = 0
    for path in places(state):
        for case in [*(replaced(state, path, by) for by in HOSTILE), without(state, path)]:
            try:
                write(tmp_path, case, tensors)
                restore(load(tmp_path, config_hash="abc"), algorithm)
            except CheckpointError:
                refused += 1
    assert refused >= 300


def hostile_arrays(arrays: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Return malformed copies: arrays of another shape, type or range, missing or unknown ones."""
    cases = []
    for name, array in arrays.items():
        others = [array[None], np.concatenate([array.ravel()] * 2), array.astype(np.complex64)]
        others += [np.zeros(0, array.dtype), np.zeros((0, 2**40), array.dtype)]
        cases += [{**arrays, name: other} for other in others]
        cases.append({n: a for n, a in arrays.items() if n != name})
    strangers = ("../../x", "/etc/passwd", "params/../x", "optimizer/x", "record/x", "", "a\0b")
    cases += [{**arrays, name: np.zeros(2)} for name in strangers]
    for name, value in (("y", 10), ("y", -1), ("t", 3), ("t", -1)):
        cases.append({**arrays, f"memory/{name}": np.full_like(arrays[f"memory/{name}"], value)})
    matrix = arrays["record/accuracy_matrix"]
    for value in (-1, 2, np.inf):
        cases.append({**arrays, "record/accuracy_matrix": np.full_like(matrix, value)})
    return cases


def test_arrays_of_checkpoints():
    """Names, shapes, types and ranges that this run cannot have."""
    donor = build("er", "torch", training={"epochs_per_task": 2})
    donor.fit()
    whole, algorithm = Trainer(donor).checkpoint(), prepared()
    restore(whole, algorithm)
    cases = hostile_arrays(whole.arrays)
    assert len(cases) >= 60
    for place, arrays in enumerate(cases):
        with pytest.raises(CheckpointError):
            restore(Checkpoint(arrays, whole.state), algorithm)
            pytest.fail(f"case {place}: {sorted(set(arrays) ^ set(whole.arrays))}")


# ---- what callbacks and loggers keep


def with_parts(directory: Path) -> Any:
    """Build a run whose callbacks and loggers keep all kinds of state."""
    callbacks = [MetricCallback(), EarlyStoppingCallback(patience=9), TimingCallback()]
    callbacks += [StabilityGapCallback(every_steps=2), CheckpointCallback(every_steps=1, keep=99)]
    training = {"epochs_per_task": 3, "chunk_steps": 2}
    stream = {"samples_per_task": 40, "num_tasks": 2, "validation_fraction": 0.25}
    algorithm = build("naive", "torch", stream=stream, training=training, callbacks=callbacks)
    algorithm.run_dir, algorithm.config_hash = directory, "abc"
    algorithm.loggers = [LocalLogger(figures=False), TensorBoardLogger(), WandbLogger()]
    return algorithm


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, Checkpoint]:
    """Set up a run from a checkpoint in the second task's second epoch; return both."""
    directory = tmp_path_factory.mktemp("parts")
    donor = with_parts(directory)
    donor.loggers = donor.loggers[:2]
    donor.fit()
    whole = load(directory / FOLDER / "000000018", config_hash="abc")
    whole.state["loggers"]["WandbLogger-1"] = {"id": "0123abcd", "rows": 3}
    trainer = Trainer(with_parts(directory))
    trainer.setup(whole)
    resume.restore_callbacks(whole, trainer)
    return trainer, whole


def go_on(case: Checkpoint, trainer: Trainer) -> None:
    """Check and restore what `fit` does, except parameters."""
    resume.check_parts(case, trainer, trainer.run_info())
    resume.restore_loggers(case, trainer.loggers)
    resume.restore_callbacks(case, trainer)


def refusal(case: Checkpoint, trainer: Trainer) -> str:
    """Return why a checkpoint is refused ("" = it is not); the part itself must detect it."""
    try:
        go_on(case, trainer)
    except CheckpointError as error:
        assert "cannot be continued from" not in str(error) and "\n" not in str(error)
        return str(error)
    json.dumps(trainer.checkpoint().state)
    return ""


@pytest.mark.ci
def test_parts_of_checkpoints(kept: tuple[Trainer, Checkpoint], capsys: pytest.CaptureFixture):
    """Entries of callbacks and loggers with hostile values are refused, or the run is usable.

    A tracker ignores such a state, with a warning.
    """
    trainer, whole = kept
    assert not refusal(whole, trainer)
    refused = 0
    for group in ("callbacks", "loggers"):
        for path in places(whole.state[group]):
            if len(path) == 1 and path[0] not in ("EarlyStoppingCallback-1", "LocalLogger-1"):
                continue  # that each state is an object is checked with the counters
            for by in (*HOSTILE, -5, 10**400):
                if len(path) == 1 and not isinstance(by, dict):
                    continue
                changed = replaced(whole.state[group], path, by)
                case = Checkpoint(whole.arrays, {**whole.state, group: changed})
                refused += bool(refusal(case, trainer))
            case_without = {**whole.state, group: without(whole.state[group], path)}
            if len(path) > 1:
                refused += bool(refusal(Checkpoint(whole.arrays, case_without), trainer))
    assert refused >= 120
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) >= 30 and all("begins anew" in line for line in warnings)


def test_arrays_of_parts(kept: tuple[Trainer, Checkpoint]):
    """Wrong shapes, wrong types, NaN, and values that cannot have been measured."""
    trainer, whole = kept
    own = {n: a for n, a in whole.arrays.items() if n.startswith("callback/")}
    refused = 0
    for name, array in own.items():
        others = [array[None], np.concatenate([array.ravel()] * 2), array.astype(np.complex64)]
        others += [np.full_like(array, -7), np.zeros((0, 2**40), array.dtype)]
        if array.dtype.kind == "f":
            others += [np.full_like(array, np.nan), np.full_like(array, np.inf)]
        cases = [{**whole.arrays, name: other} for other in others]
        cases.append({n: a for n, a in whole.arrays.items() if n != name})
        for place, arrays in enumerate(cases):
            is_weight = "EarlyStopping" in name
            if place == 3 and is_weight:
                continue  # any finite number may be a weight
            assert refusal(Checkpoint(arrays, whole.state), trainer), f"{name}: case {place}"
            refused += 1
    stranger = {**whole.arrays, "callback/MetricCallback-1/x": np.zeros(2)}
    assert refusal(Checkpoint(stranger, whole.state), trainer)
    assert refused >= 50


@pytest.mark.parametrize(
    ("counter", "value", "what"),
    [
        ("memory_bytes", 10**30, "memory_bytes"),
        ("memory_bytes", 10**7, "memory_bytes=10000000: must be an integer in 0.."),
        ("timing", {"train_seconds": -5}, r"`float` >= 0.0 - at `\$.counters.timing\["),
        ("samples_seen", 10**6, "samples_seen=1000000: must be at most"),
        ("epoch_samples", -1, r"`float` >= 0.0 - at `\$.counters.epoch_samples`"),
        ("epoch_samples", 1, "epoch_samples=1: does not fit"),
        ("final_loss", 10**400, "final_loss"),
    ],
)
def test_counters(
    counter: str, value: Any, what: str, kept: tuple[Trainer, Checkpoint], tmp_path: Path
):
    """Counters that no run can have are refused."""
    from safetensors.numpy import save

    trainer, whole = kept
    counters = dict(whole.state["counters"])
    counters[counter] = {**counters["timing"], **value} if counter == "timing" else value
    state = {"schema": 1, "config_hash": "abc", **whole.state, "counters": counters}
    write(tmp_path, state, save({n: np.array(a, order="C") for n, a in whole.arrays.items()}))
    with pytest.raises(CheckpointError, match=what):
        resume.restore_progress(load(tmp_path, config_hash="abc"), trainer.algorithm)


def test_a_checkpoint_of_another_experiment(kept: tuple[Trainer, Checkpoint], tmp_path: Path):
    """It is not damaged, but refused because of its config hash."""
    _, whole = kept
    save(whole, tmp_path, config_hash="abc")
    assert latest(tmp_path, config_hash="abc")[0] is not None
    found, wrong = latest(tmp_path, config_hash="abd")
    assert found is None and len(wrong) == 1 and "config_hash='abc': must be 'abd'" in wrong[0]
