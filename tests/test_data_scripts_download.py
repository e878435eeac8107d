"""Downloads from a local server that also misbehaves: the right file, or one clear sentence; what was there stays.

What gdown and huggingface_hub check and retry by themselves is not tested again.
"""

import hashlib
import io
import re
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
from bad_server import serve
from script_cases import download

from tinymsg.datasets.facts import Archive

from unpack import FetchError  # isort: skip


def make_zip(seed: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for i in range(20):
            member = zipfile.ZipInfo(f"SET/{i}.bin")  # of 1980: the checksums name tests, alike in every worker
            file.writestr(member, hashlib.sha256(bytes([seed, i])).digest() * 500)
    return buffer.getvalue()


WHOLE, OTHER = make_zip(0), make_zip(1)  # of one size
MD5, SHA256 = hashlib.md5(WHOLE).hexdigest(), hashlib.sha256(WHOLE).hexdigest()


@pytest.fixture
def server():
    with serve({"set.zip": WHOLE}) as running:
        yield running


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(download, "RETRIES", 0)
    monkeypatch.setattr(sys.modules["gdown.download"], "CHUNK_SIZE", 1024)


def set_from(server, *behaviours: str, **known) -> Archive:
    urls = (f"{server.url}/{b}/set.zip" for b in behaviours)
    return Archive("set.zip", tuple(urls), "https://example.org/set", "SET", {}, **known)


def whole(folder: Path) -> bool:
    """The file is there and right, and nothing else."""
    return [path.name for path in folder.iterdir()] == ["set.zip"] and (folder / "set.zip").read_bytes() == WHOLE


@pytest.mark.parametrize("known", [{}, {"md5": MD5}, {"sha256": SHA256}, {"size": len(WHOLE)}], ids=str)
@pytest.mark.parametrize(
    "behaviour", ["good", "drops", "drops_once_and_ignores_range", "hub/datasets/a/b/resolve/main"]
)
def test_a_mirror_that_works_in_the_end(server, tmp_path, behaviour, known):
    path, source, sha256 = download.fetch_archive(set_from(server, behaviour, **known), tmp_path)
    assert whole(tmp_path) and sha256 == SHA256 and source == f"{server.url}/{behaviour}/set.zip"
    asked = len(server.seen)
    assert download.fetch_archive(set_from(server, "good"), tmp_path) == (path, "", SHA256)
    assert len(server.seen) == asked, "a file that is here is not fetched again"


FAILURES = {
    "missing": "answered 404",
    "fails": "answered 500",
    "html": "web page",
    "promises_more": "byte range",
    "drops_and_ignores_range": "byte range|broke",
    "missing/datasets/a/b/resolve/main": "answered 404",
    "liar/datasets/a/b/resolve/main": "instead of",
}


@pytest.mark.parametrize(("behaviour", "message"), FAILURES.items())
def test_a_mirror_that_does_not_work(server, tmp_path, behaviour, message):
    with pytest.raises(FetchError, match=message) as error:
        download.fetch_archive(set_from(server, behaviour), tmp_path)
    assert "https://example.org/set" in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "set.zip").exists()
    download.fetch_archive(set_from(server, behaviour, "good"), tmp_path)
    assert whole(tmp_path), "the next mirror takes over, and what the first one sent is gone"


def test_nobody_listens(tmp_path):
    for path in ("", "/datasets/a/b/resolve/main"):
        archive = Archive("set.zip", (f"http://127.0.0.1:9{path}/set.zip",), "", "SET", {})
        with pytest.raises(FetchError, match="reach"):
            download.fetch_archive(archive, tmp_path)


def test_an_earlier_part_is_continued_at_its_own_mirror_only(server, tmp_path):
    archive = set_from(server, "drops_and_ignores_range", "waits")
    server.go_on.set()

    def interrupted(self, have, total):
        if have > 5000:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(download._Progress, "__call__", interrupted)
        download.fetch_archive(archive, tmp_path)
    part = next(tmp_path.rglob("*.part"))
    have = part.stat().st_size
    assert have > 5000 and WHOLE.startswith(part.read_bytes())
    server.seen.clear()
    download.fetch_archive(archive, tmp_path)
    assert whole(tmp_path)
    assert ("drops_and_ignores_range", f"bytes={have}-") in server.seen
    assert ("waits", None) in server.seen and ("waits", f"bytes={have}-") not in server.seen


def test_a_wrong_checksum_leaves_nothing_unless_it_is_taken(server, tmp_path, capsys):
    server.files["set.zip"] = OTHER
    with pytest.raises(FetchError, match=f"{hashlib.md5(OTHER).hexdigest()} instead of {MD5}"):
        download.fetch_archive(set_from(server, "good", md5=MD5), tmp_path)
    assert list(tmp_path.iterdir()) == []
    download.fetch_archive(set_from(server, "good", md5=MD5), tmp_path, any_checksum=True)
    assert (tmp_path / "set.zip").read_bytes() == OTHER and "taken all the same" in capsys.readouterr().out
    asked = len(server.seen)
    with pytest.raises(FetchError, match="instead of"):
        download.fetch_archive(set_from(server, "good", sha256=SHA256), tmp_path)
    assert (tmp_path / "set.zip").read_bytes() == OTHER and len(server.seen) == asked, "what is in place is left alone"


def test_what_a_hub_tells_is_not_a_matter_of_choice(server, tmp_path):
    with pytest.raises(FetchError, match="instead of"):
        download.fetch_archive(set_from(server, "liar/datasets/a/b/resolve/main"), tmp_path, any_checksum=True)


def test_a_server_that_offers_another_size_is_not_waited_for(server, tmp_path):
    with pytest.raises(FetchError, match=re.escape(f"{len(WHOLE):,} bytes where about 10,000,000,000")):
        download.fetch_archive(set_from(server, "good", size=10**10), tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.part")) < len(WHOLE)


def test_too_little_space_is_said_before_it_is_full(server, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: type("Usage", (), {"free": 100_000}))
    with pytest.raises(FetchError, match="are needed"):
        download.fetch_archive(set_from(server, "good"), tmp_path)


def test_a_package_that_is_not_installed(server, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(FetchError, match="gdown is not installed"):
        download.fetch_archive(set_from(server, "good"), tmp_path)
