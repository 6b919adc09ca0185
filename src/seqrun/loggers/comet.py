"""CometLogger: logs to Comet, or to an archive for a later upload."""

from __future__ import annotations

import io
import logging
import os
import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from seqrun.checks import one_of
from seqrun.loggers.base import RunInfo
from seqrun.loggers.tracker import TrackerLogger, as_text, hyperparameters
from seqrun.loggers.wandb import MODES
from seqrun.records.checkpoint_checks import check_digits

KEY_DIGITS = 32
STARTING = threading.Lock()
"""Held while an experiment starts, since the client has one global experiment per process."""
QUIET: dict[str, Any] = {
    "log_code": False,
    "log_graph": False,
    "log_env_details": False,
    "log_git_metadata": False,
    "log_git_patch": False,
    "parse_args": False,
    "auto_param_logging": False,
    "auto_metric_logging": False,
    "auto_output_logging": False,
    "auto_log_co2": False,
    "display_summary_level": 0,
}
"""Options that send only what a run logs: no command line, code, output or machine data."""


@dataclass(kw_only=True, eq=False)
class CometLogger(TrackerLogger):
    """Log scalars, configuration, final metrics and the matrix's figure to Comet.

    "offline" needs no network and no account. It writes an archive, `comet/<experiment key>*.zip`
    in the run directory, which `comet upload` sends later. Each part of a resumed run has its own
    archive, written when the part ends; a killed part has none. "online" takes the API key from
    COMET_API_KEY or ~/.comet.config, as the client does; no option sets it. A
    resumed run continues the same experiment.

    Args:
        mode: "online", "offline" or "disabled", which does nothing and imports nothing.
        project: Comet's project name.
        workspace: Comet's workspace; None = the account's own.
        tags: tags of the experiment.
        every_steps, call_seconds, close_seconds: as in TrackerLogger.

    Raises:
        ConfigError: a value out of range, or a run without a directory.
    """

    mode: str = "offline"
    project: str = "seqrun"
    workspace: str | None = None
    tags: Sequence[str] = ()
    every_steps: int = 10

    name: ClassVar[str] = "comet"
    package: ClassVar[str] = "comet_ml"
    products: ClassVar[tuple[str, ...]] = (name,)

    _key: str = field(default="", init=False, repr=False)
    _client: Any = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("mode", self.mode, MODES)

    @property
    def enabled(self) -> bool:
        return self.mode != "disabled"

    def open(self, run: RunInfo) -> None:
        super().open(run)
        self._key = secrets.token_hex(KEY_DIGITS // 2)

    def own_state(self) -> dict[str, Any]:
        """Return the experiment's key (an id, not a secret)."""
        return {"experiment": self._key}

    def take_state(self, state: Mapping[str, Any]) -> None:
        """Continue the same experiment."""
        check_digits("experiment", state.get("experiment"), KEY_DIGITS)
        super().take_state(state)
        self._key = state["experiment"]

    def start(self, run: RunInfo, directory: Path, earlier: Mapping[str, Any]) -> None:
        """Start an experiment, or a new part of one.

        Raises:
            ConnectionError: Comet cannot be reached.
        """
        os.environ.setdefault("COMET_DISABLE_AUTO_LOGGING", "1")  # do not patch the frameworks
        os.environ.setdefault("COMET_ERROR_TRACKING_ENABLE", "0")  # no reports to the vendor
        import comet_ml

        logging.getLogger("comet_ml").setLevel(logging.CRITICAL)  # our own warning is enough
        offline = self.mode == "offline"
        if offline:
            directory.mkdir(parents=True, exist_ok=True)
        config = comet_ml.ExperimentConfig(
            offline_directory=str(directory) if offline else None,
            name=f"{run.name['algo']}-{run.name['benchmark']}-seed{run.seed}",
            tags=[*self.tags, *run.config.get("tags", ())],
            **QUIET,
        )
        with STARTING:
            # Otherwise the client ends the experiment of another run in this process.
            comet_ml.config.set_global_experiment(None)
            self._client = comet_ml.start(
                workspace=self.workspace,
                project_name=self.project,
                experiment_key=self._key,
                mode="get_or_create",
                online=not offline,
                experiment_config=config,
            )
        if not self._client.alive:
            raise ConnectionError("Comet cannot be reached")
        self._client.log_parameters(hyperparameters(run.config))

    def write(self, values: Mapping[str, float], step: int, epoch: int, task: int) -> None:
        self._client.log_metrics({**values, "task": task}, step=step, epoch=epoch)

    def write_summary(self, metrics: Mapping[str, float | None]) -> None:
        """Log the final metrics, under "final/" and as a table."""
        self._client.log_others({f"final/{name}": value for name, value in metrics.items()})
        self._client.log_text(as_text(metrics))

    def write_figure(self, name: str, png: bytes) -> None:
        self._client.log_image(io.BytesIO(png), name=name)

    def finish(self, status: str) -> None:
        """End the experiment; offline, write its archive."""
        self._client.log_other("status", status)
        self._client.end()
