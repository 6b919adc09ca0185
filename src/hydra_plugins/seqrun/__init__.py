"""Launchers and sweepers of seqrun; Hydra looks for plugins only below `hydra_plugins`."""
