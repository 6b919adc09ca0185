"""What seqrun has for hydra/sweeper=basic: a grid that ends with a summary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.seqrun._jobs import BaseLauncher, HeldOut, exiting, outcome_of
from seqrun.sweeps.summary import Outcome, finish
from seqrun.sweeps.validation import held_out_by_file


class GridSweeper(HeldOut, BasicSweeper):
    """Run every combination of values; end with a summary, even if single jobs fail."""

    hydra_context: HydraContext
    config: DictConfig
    launcher: Launcher

    def sweep(self, arguments: list[str]) -> Sequence[Outcome]:
        """Launch all jobs, in batches if asked to.

        Raises:
            SystemExit: a job failed (1), the jobs could not be launched (2), or a signal ended the
                multirun (128 + its number).
        """
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        given = parser.parse_overrides([*self._parse_config(), *arguments])
        keys = [override.get_key_element() for override in given]
        held_out = held_out_by_file(self.config, keys)
        added = [f"{key}={value}" for key, value in held_out.items()]
        overrides = [*given, *parser.parse_overrides(added)]
        directory = Path(self.config.hydra.sweep.dir).absolute()
        directory.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, directory / "multirun.yaml")
        outcomes: list[Outcome] = []
        with exiting():
            batches = self.split_arguments(overrides, self.max_batch_size)
            if isinstance(self.launcher, BaseLauncher):
                self.launcher.total = sum(map(len, batches))
            for batch in batches:
                if isinstance(self.launcher, BaseLauncher):
                    self.launcher.before = len(outcomes)
                jobs = [self.with_own(list(job), keys, grid=True) for job in batch]
                returns = self.launcher.launch(jobs, initial_job_idx=len(outcomes))
                outcomes += [outcome_of(job) for job in returns]
        if status := finish(outcomes, directory, self.config.optimized_metric):
            raise SystemExit(status)
        return outcomes
