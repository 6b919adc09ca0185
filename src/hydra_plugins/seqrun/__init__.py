"""Launchers and sweepers of seqrun: Hydra looks for plugins only below this package's parent."""
