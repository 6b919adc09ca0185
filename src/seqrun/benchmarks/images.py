"""Decode many JPEG and PNG files."""

from __future__ import annotations

import io
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from seqrun.benchmarks.archive import Read
from seqrun.checks import ConfigError
from seqrun.system import num_cores

SUFFIXES = (".jpg", ".jpeg", ".png")
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # 8 bits per channel
_MAX_PIXELS = 100_000_000
_CHUNK = 64
_OBJECT = re.compile(r"\s*<\S+ object at 0x\w+>")  # in PIL's messages: the in-memory file
_SMALL = 128 * 128  # pixels; below this, the interpreter dominates and threads wait for each other


class Size(NamedTuple):
    """The size that every image must have.

    Attributes:
        height, width: pixels.
        said_by: what determines the size: the name of the first image, or an option.
        resize: resize images of other sizes instead of refusing them.
    """

    height: int
    width: int
    said_by: str
    resize: bool = False


def size_of_image(read: Read, name: str, where: str) -> tuple[int, int]:
    """Return (height, width) from an image's header.

    Raises:
        ConfigError: not a JPEG or PNG image.
    """
    from PIL import Image

    content = _file_content(read, name, where)
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
            return image.height, image.width
    except Exception as error:  # decoders raise many kinds of errors
        raise _unreadable(name, where, error) from error


def decode(content: bytes, name: str, size: Size, where: str) -> np.ndarray:
    """Return the pixels of a JPEG or PNG image.

    Grey images become RGB and transparency is dropped. Resizing uses PIL's bilinear filter, which
    averages when it reduces.

    Args:
        content: the file.
        name: for messages.
        size: required size.
        where: prefix of messages.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ConfigError: not such an image, damaged, of another size, too large, or with more than 8
            bits per channel.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
            wanted = (size.width, size.height)
            if image.size != wanted and not size.resize:
                raise ConfigError(
                    f"{where}: images differ in size: {size.said_by} has {size.width} x "
                    f"{size.height} pixels (width x height), {name} has {image.width} x "
                    f"{image.height}"
                )
            if image.width * image.height > _MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels are too many")
            if image.mode not in _MODES:
                raise ValueError(f"mode {image.mode}, must have 8 bits per channel")
            if any(";16" in str(tile[3]) for tile in image.tile):  # not visible in the mode
                raise ValueError("16 bits per channel, must have 8 bits per channel")
            rgb = image.convert("RGB")
            if rgb.size != wanted:
                rgb = rgb.resize(wanted, Image.Resampling.BILINEAR)
            return np.asarray(rgb)
    except ConfigError:
        raise
    except Exception as error:  # decoders raise many kinds of errors
        raise _unreadable(name, where, error) from error


def decoded_blocks(
    read: Read, names: Sequence[str], size: Size, what: str, where: str
) -> Iterator[np.ndarray]:
    """Decode files and yield (n, H, W, 3) uint8 blocks in the files' order.

    Large images are decoded by one thread per core, since decoding releases the GIL; small ones by
    a single thread, beside the one that writes.

    Args:
        read: name -> content; called from several threads.
        names: of the files.
        size: of every image.
        what: label of the progress bar, which is shown on a terminal only.
        where: prefix of messages.

    Raises:
        ConfigError: for the first bad image.
    """
    from tqdm import tqdm

    def work(chunk: Sequence[str]) -> np.ndarray:
        return np.stack([decode(_file_content(read, n, where), n, size, where) for n in chunk])

    chunks = [names[i : i + _CHUNK] for i in range(0, len(names), _CHUNK)]
    small = not size.resize and size.height * size.width < _SMALL
    with tqdm(total=len(names), desc=what, unit=" images", disable=None, leave=False) as bar:
        for block in _in_order(work, chunks, 1 if small else num_cores()):
            bar.update(len(block))
            yield block


def _in_order(
    work: Callable[[Sequence[str]], np.ndarray], chunks: Sequence[Sequence[str]], workers: int
) -> Iterator[np.ndarray]:
    """Yield the results in order, computing only a few ahead to bound memory."""
    waiting: deque[Future[np.ndarray]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for chunk in chunks:
            waiting.append(pool.submit(work, chunk))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _file_content(read: Read, name: str, where: str) -> bytes:
    try:
        return read(name)
    except Exception as error:  # from the file system or a damaged archive
        raise _unreadable(name, where, error) from error


def _unreadable(name: str, where: str, error: Exception) -> ConfigError:
    told = _OBJECT.sub("", str(error)).strip()
    reason = (told or type(error).__name__).splitlines()[0]
    return ConfigError(f"{where}: {name} cannot be read as an image: {reason}")
