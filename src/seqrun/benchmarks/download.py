"""Download files of known checksum; interrupted downloads are continued."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from seqrun.benchmarks.archive import md5_of
from seqrun.checks import ConfigError, first_line

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
        except OSError as error:
            raise ConfigError(
                f"{where}: {title} is missing and could not be downloaded ({first_line(error)}): "
                f"put {path.name} (md5 {md5}, from {url}) or the folder {folder} into "
                f"{path.parent}, or set data_dir or SEQRUN_DATA to a folder with it"
            ) from error
    try:
        check_md5(md5_of(path), md5, path, where)
    except OSError as error:
        raise ConfigError(f"{where}: cannot read {path}: {error}") from error


def check_md5(found: str, expected: str, path: Path | str, where: str) -> None:
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
    import requests
    from filelock import FileLock

    part, lock = (path.with_name(path.name + suffix) for suffix in (".part", ".lock"))
    if not part.exists():  # offline this fails, before anything is created
        with requests.get(url, stream=True, timeout=_TIMEOUT) as response:
            response.raise_for_status()
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        try:
            if path.exists():
                return  # another process has downloaded it
            _complete(url, part)
            found = md5_of(part)
            if found != md5:
                part.unlink()
                raise OSError(f"{url} has md5 {found}, must be {md5}")
            os.replace(part, path)
        finally:
            with contextlib.suppress(OSError):  # Windows does not remove an open file
                lock.unlink()


def _complete(url: str, part: Path) -> None:
    """Append the rest to the part, or rewrite it if the server does not support ranges."""
    import pooch
    import requests

    with open(part, "ab") as file:

        def restart(response: requests.Response, **_: object) -> None:
            if response.status_code == 200:  # 206 is the part that was asked for
                file.truncate(0)

        get = pooch.HTTPDownloader(
            progressbar=sys.stderr.isatty(),
            timeout=_TIMEOUT,
            headers={"Range": f"bytes={file.tell()}-", "Accept-Encoding": "identity"},
            hooks={"response": restart},
        )
        try:
            get(url, file, None)
        except requests.exceptions.ChunkedEncodingError as error:
            told = f"the connection ended after {file.tell()} bytes; run again to go on"
            raise OSError(told) from error
        except requests.HTTPError as error:
            if getattr(error.response, "status_code", None) != 416:
                raise
            # There is nothing beyond the part: it is complete, or its checksum is wrong.
