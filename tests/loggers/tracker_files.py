"""Read the files that trackers write: event files, offline W&B runs, Comet archives."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32768, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def events(directory: Path) -> Any:
    """Return TensorBoard's reader of a directory, after loading it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(directory), size_guidance={"scalars": 0}).Reload()


def points(reader: Any, tag: str) -> list[tuple[int, float]]:
    """Return (step, value) of a scalar, in order."""
    return [(event.step, event.value) for event in reader.Scalars(tag)]


def wandb_records(path: Path) -> Iterator[Any]:
    """Yield the records of a .wandb file: a LevelDB log after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = path.read_bytes(), HEADER, b""
    assert data[:4] == b":W&B"
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:  # no header fits into the rest of the block
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + HEADER])
        content = data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        parts = content if kind in (FULL, FIRST) else parts + content
        if kind in (FULL, LAST):
            record = Record()
            record.ParseFromString(parts)
            yield record


def plain(items: Any) -> dict[str, Any]:
    """Return key -> value of items in a W&B record."""
    return {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}


def wandb_run(path: Path) -> dict[str, Any]:
    """Return an offline run's id, config, rows (with "_step"), final summary and exit code."""
    run: dict[str, Any] = {"rows": [], "summary": {}, "config": {}}
    for record in wandb_records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run["id"] = record.run.run_id
            run["config"] |= plain(record.run.config.update)
        elif kind == "history":
            run["rows"].append(plain(record.history.item))
        elif kind == "summary":
            run["summary"] |= plain(record.summary.update)
        elif kind == "exit":
            run["exit_code"] = record.exit.exit_code
    return run


def comet_messages(archive: Path) -> list[dict[str, Any]]:
    """Return the messages of a Comet archive."""
    with zipfile.ZipFile(archive) as file:
        lines = file.read("messages.json").decode().splitlines()
    return [json.loads(line) for line in lines]


def comet_metrics(archive: Path) -> dict[str, list[tuple[int, float]]]:
    """Return name -> (step, value) of a Comet archive's metrics."""
    named: dict[str, list[tuple[int, float]]] = {}
    for message in comet_messages(archive):
        if message["type"] == "metric_msg":
            metric = message["payload"]["metric"]
            named.setdefault(metric["metricName"], []).append(
                (metric["step"], metric["metricValue"])
            )
    return named
