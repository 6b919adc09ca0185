"""What macOS and Windows lack, hidden on Linux.

A folder with a copy of this file as sitecustomize.py on PYTHONPATH hides it from a command and from
every process that it starts; the variable HIDDEN says of which system.
"""

from __future__ import annotations

import builtins
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

MODULES = {"macos": (), "windows": ("fcntl", "grp", "pwd", "resource", "termios")}
"""System -> modules that it lacks; libraries, which have other code for it, get them here."""
OURS = ("seqrun", "hydra_plugins.seqrun", "__main__")
ON_BOTH = ("sched_getaffinity", "sched_setaffinity")
ATTRIBUTES = {
    "macos": {os: ON_BOTH},
    "windows": {
        os: (*ON_BOTH, "fork", "forkpty", "killpg", "getpgid", "setsid", "getuid", "O_DIRECTORY"),
        signal: ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU", "pthread_sigmask", "setitimer"),
    },
}
"""System -> module -> names that it lacks."""
FOLDERS = ("/proc", "/sys/fs")


def hide(
    system: str,
    delete: Callable[[Any, str], None] = delattr,
    set_attribute: Callable[[Any, str, Any], None] = setattr,
) -> None:
    """Hide what a system lacks; pytest's monkeypatch has other functions that undo it."""
    for module, names in ATTRIBUTES[system].items():
        for name in names:
            if hasattr(module, name):
                delete(module, name)
    set_attribute(builtins, "__import__", _without(MODULES[system], builtins.__import__))
    for name in ("stat", "open"):
        set_attribute(Path, name, _refusing(getattr(Path, name)))
    if system == "windows":
        set_attribute(os, "open", _no_folders(os.open))


def _without(modules: tuple[str, ...], find: Callable) -> Callable:
    def refuse(name: str, globals: Any = None, *args: Any, **options: Any) -> Any:
        if name in modules and globals and globals["__name__"].startswith(OURS):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return find(name, globals, *args, **options)

    return refuse


def _refusing(method: Callable) -> Callable:
    def refuse(path: Path, *args: Any, **options: Any) -> Any:
        if str(path).startswith(FOLDERS):
            raise FileNotFoundError(2, "hidden", str(path))
        return method(path, *args, **options)

    return refuse


def _no_folders(method: Callable) -> Callable:
    def refuse(path: Any, *args: Any, **options: Any) -> Any:
        if isinstance(path, str | Path) and os.path.isdir(path):
            raise PermissionError(13, "Permission denied", str(path))
        return method(path, *args, **options)

    return refuse


if __name__ == "sitecustomize":
    hide(os.environ["HIDDEN"])
