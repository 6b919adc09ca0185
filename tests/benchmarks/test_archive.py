"""Archives that no data set is, and downloads that break off."""

from __future__ import annotations

import hashlib
import stat
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from benchmarks.generators import image_tree, write_zip

from seqrun.benchmarks import SplitImageFolder
from seqrun.benchmarks.archive import zip_files
from seqrun.benchmarks.download import download
from seqrun.checks import ConfigError

CONTENT = bytes(range(256)) * 4000  # 1 MB
MD5 = hashlib.md5(CONTENT).hexdigest()


def with_member(path, name, content=b"x", *, mode=0o644, compression=zipfile.ZIP_STORED):
    """Write a good set and one more member."""
    write_zip(path, image_tree())
    with zipfile.ZipFile(path, "a") as extended:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        info.compress_type = compression
        extended.writestr(info, content)
    return path


@pytest.mark.parametrize(
    "name", ["../out.jpg", "/etc/out.jpg", "train/../../out.jpg", "train\\..\\out.jpg", "C:/x.jpg"]
)
def test_names_that_lead_outside(tmp_path, name):
    """They are refused, whether they would be read or not."""
    path = with_member(tmp_path / "a.zip", name)
    with pytest.raises(ConfigError, match="holds the name .* which may lead outside"):
        SplitImageFolder(path=path, num_tasks=2)
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]


def test_links_bombs_and_twins(tmp_path):
    """By what the directory of the archive declares, without unpacking anything."""
    path = with_member(tmp_path / "a.zip", "train/ant/l.jpg", mode=stat.S_IFLNK | 0o777)
    with pytest.raises(ConfigError, match="train/ant/l.jpg is a link"):
        zip_files(path, "here")
    path = with_member(
        tmp_path / "b.zip", "train/ant/b.png", bytes(20 << 20), compression=zipfile.ZIP_DEFLATED
    )
    with pytest.raises(ConfigError, match="train/ant/b.png would unpack to 20971520 bytes"):
        zip_files(path, "here")
    with pytest.warns(UserWarning, match="Duplicate"):
        path = with_member(tmp_path / "c.zip", "train/ant/0000.jpg")
    with pytest.raises(ConfigError, match="holds train/ant/0000.jpg twice"):
        zip_files(path, "here")


def test_a_member_that_declares_less_than_it_holds(tmp_path):
    """Reading stops at the declared size, and the image is named."""
    path = write_zip(tmp_path / "a.zip", image_tree())
    with zipfile.ZipFile(path) as opened:
        info = opened.getinfo("test/dog/0001.png")
    size, short = (n.to_bytes(4, "little") for n in (info.file_size, info.file_size - 50))
    content = path.read_bytes()
    start = content.rindex(b"test/dog/0001.png") - 46
    entry = content[start : start + 46].replace(size + size, short + short)
    path.write_bytes(content[:start] + entry + content[start + 46 :])
    with pytest.raises(ConfigError, match="test/dog/0001.png cannot be read as an image"):
        SplitImageFolder(path=path, num_tasks=2).check_data()


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 and no more"])
def test_no_archive(tmp_path, content):
    """Whatever it is called."""
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(ConfigError, match="a.zip: not a zip archive, or truncated"):
        SplitImageFolder(path=tmp_path / "a.zip")


def test_truncated_archive(tmp_path):
    """Its directory stands at the end."""
    path = write_zip(tmp_path / "a.zip", image_tree())
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ConfigError, match="not a zip archive, or truncated"):
        SplitImageFolder(path=path)


def test_damage_inside_is_named(tmp_path):
    """The archive's checksum of the member does not fit."""
    tree = image_tree()
    path = write_zip(tmp_path / "a.zip", tree)
    image = tree["train/cat/0001.png"]
    content = path.read_bytes()
    path.write_bytes(content.replace(image, image[:-30] + bytes(10) + image[-20:]))
    with pytest.raises(ConfigError, match="train/cat/0001.png cannot be read .*CRC"):
        SplitImageFolder(path=path, num_tasks=2).check_data()


# ---- downloads


class Server(BaseHTTPRequestHandler):
    """Serve CONTENT; break off after `cut` bytes, and know parts or not."""

    cut: int | None = None
    parts = True
    content = CONTENT
    asked: list[str | None] = []

    def do_GET(self):
        """Answer."""
        wanted = self.headers.get("Range")
        self.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.parts else 0
        if start >= len(self.content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(self.content) - start))
        self.end_headers()
        self.wfile.write(self.content[start : self.cut])

    def log_message(self, *args):
        """Say nothing."""


@pytest.fixture
def served(monkeypatch):
    """Return the server's class and the address."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = type("Handler", (Server,), {"asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield handler, f"http://127.0.0.1:{server.server_port}/file"
        server.shutdown()


@pytest.mark.parametrize("parts", [True, False])
def test_an_interrupted_download_goes_on(served, tmp_path, parts):
    """The rest alone is asked for; a server without parts sends all again."""
    handler, url = served
    path = tmp_path / "new" / "file"
    handler.cut, handler.parts = 409_600, parts
    with pytest.raises(OSError, match="ended after 409600 bytes; run again to go on"):
        download(url, path, MD5)
    assert [p.name for p in path.parent.iterdir()] == ["file.part"]
    handler.cut = None
    handler.asked.clear()
    download(url, path, MD5)
    assert handler.asked == ["bytes=409600-"]
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_a_whole_part_is_taken(served, tmp_path):
    """A process may be killed between the last byte and the name."""
    (tmp_path / "file.part").write_bytes(CONTENT)
    download(served[1], tmp_path / "file", MD5)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_wrong_content_is_not_kept(served, tmp_path):
    """Whether it came now or was there before."""
    handler, url = served
    handler.content = CONTENT[:-1] + b"?"
    with pytest.raises(OSError, match=f"has md5 .*, must be {MD5}"):
        download(url, tmp_path / "file", MD5)
    handler.content = CONTENT
    (tmp_path / "file.part").write_bytes(b"old")
    with pytest.raises(OSError, match="has md5"):
        download(url, tmp_path / "file", MD5)
    assert not list(tmp_path.iterdir())
    download(url, tmp_path / "file", MD5)


def test_several_at_once_download_it_once(served, tmp_path):
    """The others wait for the first and take its file."""
    handler, url = served
    failures = []

    def work():
        try:
            download(url, tmp_path / "file", MD5)
        except OSError as error:
            failures.append(error)

    threads = [Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failures
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
