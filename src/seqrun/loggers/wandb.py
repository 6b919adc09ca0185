"""WandbLogger: logs to Weights & Biases, or to files for a later upload."""

from __future__ import annotations

import io
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from seqrun.checks import one_of
from seqrun.loggers.base import RunInfo
from seqrun.loggers.tracker import TrackerLogger
from seqrun.records.checkpoint_checks import check_digits

MODES = ("online", "offline", "disabled")
ID_DIGITS = 8


@dataclass(kw_only=True, eq=False)
class WandbLogger(TrackerLogger):
    """Log scalars, configuration, final metrics and the matrix's figure to Weights & Biases.

    Its files are in `wandb/` in the run directory. "offline" needs no network and no account;
    `wandb sync` uploads the run later. "online" takes the API key from WANDB_API_KEY or the file of
    `wandb login`, as the client does; no option sets it.

    The x-axis of charts is "step", the training steps of the run; W&B's own step counts rows. A
    resumed run keeps its id and continues at the row of its checkpoint, so that rows sent before
    keep their numbers and values.

    Args:
        mode: "online", "offline" or "disabled", which does nothing and imports nothing.
        project, entity, group, tags: as in wandb.init; None = its defaults.
        every_steps, call_seconds, close_seconds: as in TrackerLogger.

    Raises:
        ConfigError: a value out of range, or a run without a directory.
    """

    mode: str = "offline"
    project: str = "seqrun"
    entity: str | None = None
    group: str | None = None
    tags: Sequence[str] = ()
    every_steps: int = 10

    name: ClassVar[str] = "wandb"
    package: ClassVar[str] = "wandb"
    products: ClassVar[tuple[str, ...]] = (name,)

    _id: str = field(default="", init=False, repr=False)
    _client: Any = field(default=None, init=False, repr=False)
    _row: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("mode", self.mode, MODES)

    @property
    def enabled(self) -> bool:
        return self.mode != "disabled"

    def open(self, run: RunInfo) -> None:
        super().open(run)
        self._id = secrets.token_hex(ID_DIGITS // 2)

    def own_state(self) -> dict[str, Any]:
        return {"id": self._id}

    def take_state(self, state: Mapping[str, Any]) -> None:
        """Continue under the same id."""
        check_digits("id", state.get("id"), ID_DIGITS)
        super().take_state(state)
        self._id = state["id"]

    def start(self, run: RunInfo, directory: Path, earlier: Mapping[str, Any]) -> None:
        """Start a W&B run."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # no reports to the vendor
        import wandb

        directory.mkdir(parents=True, exist_ok=True)
        self._row = earlier.get("rows", 0)
        mode: Any = self.mode
        self._client = wandb.init(
            dir=str(directory.parent),
            mode=mode,
            project=self.project,
            entity=self.entity,
            group=self.group,
            tags=[*self.tags, *run.config.get("tags", ())],
            notes=run.config.get("notes"),
            name=f"{run.name['algo']}-{run.name['benchmark']}-seed{run.seed}",
            id=self._id,
            resume="allow",
            reinit="create_new",
            config=dict(run.config),
            settings=wandb.Settings(
                silent=True,
                console="off",
                save_code=False,
                disable_code=True,
                disable_git=True,
                x_disable_meta=True,  # no command line, no machine data
                x_disable_stats=True,
            ),
        )
        self._client.define_metric("*", step_metric="step")

    def write(self, values: Mapping[str, float], step: int, epoch: int, task: int) -> None:
        self._client.log({**values, "step": step, "epoch": epoch, "task": task}, step=self._row)
        self._row += 1

    def write_summary(self, metrics: Mapping[str, float | None]) -> None:
        """Put the final metrics into the run's summary, under "final/"."""
        for name, value in metrics.items():
            self._client.summary[f"final/{name}"] = value

    def write_figure(self, name: str, png: bytes) -> None:
        """Log a figure, in a row of its own."""
        import wandb
        from PIL import Image

        with Image.open(io.BytesIO(png)) as image:
            self._client.log({name: wandb.Image(image)}, step=self._row)
        self._row += 1

    def finish(self, status: str) -> None:
        """End the W&B run, marked as failed unless it completed."""
        self._client.finish(exit_code=0 if status == "completed" else 1)
