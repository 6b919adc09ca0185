"""TensorBoardLogger: writes an event file."""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, ClassVar

from seqrun.loggers.base import RunInfo
from seqrun.loggers.tracker import TrackerLogger, as_text, hyperparameters

EVENT_FILE = "events.out.tfevents.seqrun"
HEAD_RECORDS = 3
"""Records before the first value: file version, hyper-parameters, configuration."""
FLUSH_SECONDS = 5.0


@dataclass(kw_only=True, eq=False)
class TensorBoardLogger(TrackerLogger):
    """Write scalars, configuration, final metrics and the matrix's figure for TensorBoard.

    There is one event file, `tensorboard/events.out.tfevents.seqrun` in the run directory. Writing
    it needs neither TensorFlow nor torch. A resumed run truncates the file to its checkpoint and
    appends, so that it has no value twice.

    Args:
        every_steps, call_seconds, close_seconds: as in TrackerLogger.

    Raises:
        ConfigError: a value out of range, or a run without a directory.
    """

    name: ClassVar[str] = "tensorboard"
    package: ClassVar[str] = "tensorboard"
    products: ClassVar[tuple[str, ...]] = (name,)

    _file: IO[bytes] | None = field(default=None, init=False, repr=False)
    _flushed_at: float = field(default=0.0, init=False, repr=False)
    _step: int = field(default=0, init=False, repr=False)

    def start(self, run: RunInfo, directory: Path, earlier: Mapping[str, Any]) -> None:
        """Open a new event file, or truncate the earlier one to the records of the checkpoint."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        path = directory / EVENT_FILE
        directory.mkdir(parents=True, exist_ok=True)
        continues = bool(earlier) and path.exists()
        if continues:
            os.truncate(path, length_of(path, HEAD_RECORDS + earlier["rows"]))
        self._file = open(path, "ab" if continues else "wb")
        self._records = RecordWriter(self._file)
        self._step = run.resumed_at or 0
        if not continues:
            self._write_head(run)

    def _write_head(self, run: RunInfo) -> None:
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb

        version = self._event(wall_time=time.time(), file_version="brain.Event:2")
        self._records.write(version.SerializeToString())
        simple = (bool, int, float, str)
        named = hyperparameters(run.config)
        self._add(hparams_pb({k: v if isinstance(v, simple) else str(v) for k, v in named.items()}))
        config = json.dumps(run.config, indent=2, ensure_ascii=False, default=str)
        self._add_text("config", f"```\n{config}\n```")

    def write(self, values: Mapping[str, float], step: int, epoch: int, task: int) -> None:
        """Write one record with all of `values`."""
        self._step = step
        new = self._summary.Value
        self._add(self._summary(value=[new(tag=k, simple_value=v) for k, v in values.items()]))

    def write_summary(self, metrics: Mapping[str, float | None]) -> None:
        """Write the final metrics as text."""
        self._add_text("metrics", as_text(metrics))

    def write_figure(self, name: str, png: bytes) -> None:
        width, height = struct.unpack(">II", png[16:24])  # from the PNG header
        image = self._summary.Image(
            encoded_image_string=png, width=width, height=height, colorspace=4
        )
        self._add(self._summary(value=[self._summary.Value(tag=name, image=image)]))

    def flush(self) -> None:
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())

    def finish(self, status: str) -> None:
        self.flush()
        assert self._file is not None
        self._file.close()

    def _add(self, summary: Any) -> None:
        now = time.time()
        event = self._event(wall_time=now, step=self._step, summary=summary)
        self._records.write(event.SerializeToString())
        if now - self._flushed_at > FLUSH_SECONDS:  # so that a running experiment can be viewed
            self._records.flush()
            self._flushed_at = now

    def _add_text(self, name: str, text: str) -> None:
        from tensorboard.compat.proto.summary_pb2 import SummaryMetadata
        from tensorboard.compat.proto.tensor_pb2 import TensorProto

        plugin = SummaryMetadata.PluginData(plugin_name="text")
        value = self._summary.Value(
            tag=name,
            metadata=SummaryMetadata(plugin_data=plugin),
            tensor=TensorProto(dtype=7, string_val=[text.encode()]),  # DT_STRING
        )
        self._add(self._summary(value=[value]))


def length_of(path: Path, records: int) -> int:
    """Return the length in bytes of the first `records` complete records of an event file.

    A record consists of the length of its content (8 bytes, little-endian), a checksum (4 bytes),
    the content, and a checksum (4 bytes).
    """
    size, end = path.stat().st_size, 0
    with open(path, "rb") as file:
        for _ in range(records):
            header = file.read(8)
            if len(header) < 8:
                break
            after = end + 8 + 4 + struct.unpack("<Q", header)[0] + 4
            if after > size:
                break
            end = file.seek(after)
    return end
