"""Files in a folder or zip archive: listed without reading, read without unpacking."""

from __future__ import annotations

import hashlib
import os
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from seqrun.checks import ConfigError

Read = Callable[[str], bytes]
MAX_MEMBER = 256 << 20  # bytes; larger than any image of a training set
MAX_RATIO = 200  # of compression; JPEG and PNG are compressed already
_SMALL = 1 << 20  # bytes; smaller text files may compress better


@dataclass(frozen=True)
class Files:
    """The files in a folder or an archive, without hidden ones.

    Attributes:
        names: sorted relative names of the files, with "/"; without a single top folder.
        folders: relative names of listed folders, which may be empty.
        fingerprint: hash of names, sizes and modification times of a folder's files, or of names,
            sizes and checksums in an archive.
        open: context manager that yields a function name -> content.
    """

    names: tuple[str, ...]
    folders: frozenset[str]
    fingerprint: str
    open: Callable[[], AbstractContextManager[Read]]


def given_path(path: str | Path | None, what: str) -> Path:
    """Return benchmark.path as a path; raise ConfigError if it is missing or does not exist."""
    if path is None:
        raise ConfigError(f"benchmark.path: must be given: {what}")
    if not isinstance(path, (str, Path)) or not Path(path).expanduser().exists():
        raise ConfigError(f"benchmark.path={path}: does not exist; must be {what}")
    return Path(path).expanduser().absolute()


def stamp(path: Path) -> tuple[int, int, int]:
    """Return size, modification time (ns) and inode, which change when a file is rewritten."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino


def md5_of(path: Path) -> str:
    """Return the md5 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def hash_of(lines: Iterable[str]) -> str:
    """Return the md5 of lines of text."""
    return hashlib.md5("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def folder_files(root: Path, parts: Iterable[str], where: str) -> Files:
    """List the files of a folder.

    Args:
        root: the folder.
        parts: files in it, and folders to list recursively; everything else is ignored.
        where: prefix of messages, such as "benchmark.path=x".

    Raises:
        ConfigError: the folder cannot be listed.
    """
    stats: dict[str, os.stat_result] = {}
    folders: set[str] = set()
    waiting = [part for part in parts if (root / part).exists()]
    try:
        for part in [part for part in waiting if (root / part).is_file()]:
            waiting.remove(part)
            stats[part] = (root / part).stat()
        while waiting:
            folder = waiting.pop()
            folders.add(folder)
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    name = f"{folder}/{entry.name}"
                    if _hidden(name):
                        continue
                    if entry.is_dir():
                        waiting.append(name)
                    else:
                        stats[name] = entry.stat()
    except OSError as error:
        raise ConfigError(f"{where}: cannot be listed: {error}") from error
    names = tuple(sorted(stats))
    lines = (f"{name}\0{stats[name].st_size}\0{stats[name].st_mtime_ns}" for name in names)
    opened = nullcontext(lambda name: (root / name).read_bytes())
    return Files(names, frozenset(folders), hash_of(lines), lambda: opened)


def zip_files(path: Path, where: str) -> Files:
    """List the files of a zip archive, which is never unpacked to disk.

    Args:
        path: the archive.
        where: prefix of messages.

    Raises:
        ConfigError: not a zip archive, truncated, or with members that no data set has: names
            that lead outside, links, encrypted files, an impossible size or compression ratio.
    """
    try:
        return _zip_files(path, stamp(path), where)
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read: {error}") from error


def zip_opened(path: Path, where: str) -> zipfile.ZipFile:
    """Open a zip archive; raise ConfigError if it is not one."""
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise ConfigError(f"{where}: not a zip archive, or truncated ({error})") from error


@lru_cache(maxsize=8)
def _zip_files(path: Path, when: tuple[int, int, int], where: str) -> Files:
    members: dict[str, zipfile.ZipInfo] = {}
    with zip_opened(path, where) as archive:
        for info in archive.infolist():
            _check_member(info, where)
            if _hidden(info.filename):
                continue
            if info.filename in members:
                raise ConfigError(f"{where}: holds {info.filename} twice")
            members[info.filename] = info
    stored_as = _without_top(members)
    names = tuple(sorted(name for name in stored_as if not name.endswith("/")))
    folders = frozenset(name.rstrip("/") for name in stored_as if name.endswith("/"))
    infos = ((name, members[stored_as[name]]) for name in names)
    lines = (f"{name}\0{info.file_size}\0{info.CRC}" for name, info in infos)

    @contextmanager
    def opened() -> Iterator[Read]:
        with zip_opened(path, where) as archive:
            yield lambda name: archive.read(stored_as[name])  # at most the declared size

    return Files(names, folders, hash_of(lines), opened)


def _check_member(info: zipfile.ZipInfo, where: str) -> None:
    name = info.orig_filename
    parts = name.split("/")
    if not name or name.startswith("/") or ".." in parts or {"\\", ":", "\0"} & set(name):
        raise ConfigError(f"{where}: holds the name {name!r}, which may lead outside")
    if stat.S_ISLNK(info.external_attr >> 16):
        raise ConfigError(f"{where}: {name} is a link, must be a file")
    if info.flag_bits & 1:
        raise ConfigError(f"{where}: {name} is encrypted")
    ratio = info.file_size / max(info.compress_size, 1)
    if info.file_size > MAX_MEMBER or (info.file_size > _SMALL and ratio > MAX_RATIO):
        raise ConfigError(
            f"{where}: {name} would unpack to {info.file_size} bytes from {info.compress_size}, "
            "more than any image"
        )


def _hidden(name: str) -> bool:
    """Return whether a name is hidden, or was added by macOS."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _without_top(names: Mapping[str, object]) -> dict[str, str]:
    """Return relative name -> stored name, leaving out a single top folder."""
    tops = {name.partition("/")[0] for name in names}
    if len(tops) != 1 or not all("/" in name for name in names):
        return {name: name for name in names}
    relative = {name.partition("/")[2]: name for name in names}
    return {name: stored for name, stored in relative.items() if name}
