"""Download files of known checksum; interrupted downloads are continued."""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import BinaryIO

from seqrun.benchmarks.archive import md5_of
from seqrun.benchmarks.progress import progress_bar
from seqrun.checks import ConfigError

_BLOCK = 1 << 18
_TIMEOUT = 30  # seconds without a byte


def ensure_archive(title: str, path: Path, folder: str, url: str, md5: str, where: str) -> None:
    """Download an archive if it is missing; raise ConfigError unless it is the published one.

    Args:
        title: name of the data set.
        path: path of the archive.
        folder: name of the unpacked folder, which may replace the archive.
        url: of the published archive.
        md5: of the archive.
        where: prefix of messages.
    """
    if not path.is_file():
        try:
            download(url, path, md5)
        except (ImportError, OSError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise ConfigError(
                f"{where}: {title} is missing and could not be downloaded ({reason}): put "
                f"{path.name} (md5 {md5}, from {url}) or the folder {folder} into {path.parent}, "
                "or set data_dir or SEQRUN_DATA to a folder with it"
            ) from error
    try:
        same_md5(md5_of(path), md5, path, where)
    except OSError as error:
        raise ConfigError(f"{where}: cannot read {path}: {error}") from error


def same_md5(found: str, expected: str, path: Path | str, where: str) -> None:
    """Raise ConfigError unless a file has the published md5."""
    if found != expected:
        raise ConfigError(
            f"{where}: {path} is truncated or another file (md5 {found}, must be {expected}): "
            "delete it to have it downloaded again"
        )


def download(url: str, path: Path, md5: str) -> None:
    """Download `url` to `path`.

    The bytes are written to `<name>.part` beside it, which is renamed once its checksum is right.
    After an interruption the next call requests only the rest. Of several processes one downloads
    and the others wait.

    Args:
        url: http address.
        path: the file; its folder is created if missing.
        md5: of the whole file.

    Raises:
        OSError: no connection, an interrupted one (the part stays), no permission, a wrong checksum
            (the part is deleted).
    """
    import fcntl  # not on Windows, where files can be copied by hand

    part = path.with_name(f"{path.name}.part")
    try:
        if not part.exists():
            _open(url, 0).close()  # fails offline, before anything is created
        path.parent.mkdir(parents=True, exist_ok=True)
        while not path.exists():
            with open(part, "ab") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if not _stands_at(file, part):
                    continue  # the previous holder of the lock has renamed or removed this file
                if path.exists():
                    part.unlink()  # just created, after another process had finished
                    return
                _complete(url, file, path.name)
                found = md5_of(part)
                if found != md5:
                    part.unlink()
                    raise OSError(f"{url} has md5 {found}, must be {md5}")
                os.replace(part, path)
    except (http.client.HTTPException, ValueError) as error:
        raise OSError(str(error) or type(error).__name__) from error


def _stands_at(file: BinaryIO, path: Path) -> bool:
    """Return whether the open file is the one at `path`."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _open(url: str, start: int) -> http.client.HTTPResponse:
    headers = {"User-Agent": "seqrun", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT)


def _complete(url: str, file: BinaryIO, name: str) -> None:
    """Append the rest to the file, or rewrite it if the server does not support ranges."""
    start = file.seek(0, os.SEEK_END)
    try:
        response = _open(url, start)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        return  # there is nothing beyond the part: it is complete, or its checksum is wrong
    with response:
        if start and response.status != 206:
            file.truncate(0)
            start = 0
        length = response.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        with progress_bar(name, total, "B", done=start) as moved:
            while block := response.read(_BLOCK):
                file.write(block)
                moved(len(block))
        file.flush()
        have = file.seek(0, os.SEEK_END)
        if total is not None and have < total:
            raise OSError(f"the connection ended after {have} of {total} bytes; run again to go on")
