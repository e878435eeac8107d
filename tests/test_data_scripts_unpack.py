"""Archives that nobody vouches for: the right files, or one clear sentence and nothing written outside."""

import gzip
import io
import os
import shlex
import stat
import struct
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest
from script_cases import contents

import unpack  # isort: skip

FILES = {f"SET/{i}/{name}": bytes([i]) * 5000 for i in range(3) for name in ("a.bin", "b.bin")}
LIMIT = 1_000_000


def zipped(
    *extra: tuple[str, bytes, int], files: dict[str, bytes] = FILES, method: int = zipfile.ZIP_DEFLATED
) -> bytes:
    """A zip; each extra is (name, content, mode)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, content in files.items():
            file.writestr(name, content)
        for name, content, mode in extra:
            entry = zipfile.ZipInfo(name)
            entry.external_attr, entry.compress_type = mode << 16, method
            file.writestr(entry, content)
    return buffer.getvalue()


def tarred(*extra: tuple[str, bytes, bytes, str], files: dict[str, bytes] = FILES, mode: str = "w:gz") -> bytes:
    """A tar; each extra is (name, content, type, link target)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as file:
        for name, content, kind, target in [
            *((name, content, tarfile.REGTYPE, "") for name, content in files.items()),
            *extra,
        ]:
            entry = tarfile.TarInfo(name)
            entry.size, entry.type, entry.linkname = len(content), kind, target
            file.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def lying_zip() -> bytes:
    """Says that its file has 10 bytes, and holds five million."""
    content = bytearray(zipped(files={"SET/bomb": bytes(5_000_000)}))
    for magic, at in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        place = content.index(magic) + at
        content[place : place + 4] = struct.pack("<I", 10)
    return bytes(content)


def overlapping_zip() -> bytes:
    """Forty names for the same 100 kB of data: small in itself, large in what comes out."""
    content = zipped(files={"SET/000": bytes(100_000)})
    start = content.index(b"PK\x01\x02")
    body, entry, end = (
        content[:start],
        content[start : content.index(b"PK\x05\x06")],
        bytearray(content[content.index(b"PK\x05\x06") :]),
    )
    entries = b"".join(entry.replace(b"SET/000", f"SET/{i:03d}".encode()) for i in range(40))
    end[8:20] = struct.pack("<HHII", 40, 40, len(entries), start)
    return body + entries + bytes(end)


def header_bomb() -> bytes:
    """A tar whose extended header alone has 2 MB."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as file:
        entry = tarfile.TarInfo("SET/a")
        entry.pax_headers = {"comment": "x" * 2_000_000}
        file.addfile(entry)
    return gzip.compress(buffer.getvalue())


OUTSIDE = f"{tempfile.gettempdir()}/evil-{os.getpid()}.txt"
REG, LNK, FIFO = stat.S_IFREG | 0o644, stat.S_IFLNK | 0o777, stat.S_IFIFO | 0o644
R = tarfile.REGTYPE
GOOD = {
    "zip": zipped(),
    "zip-stored": zipped(method=zipfile.ZIP_STORED),
    "zip-with-junk": zipped(
        ("__MACOSX/SET/._a", b"x", REG),
        ("SET/.DS_Store", b"x", REG),
        ("SET/0/Thumbs.db", b"", REG),
        ("SET/._b.png", b"", REG),
    ),
    "tar.gz": tarred(),
    "tar": tarred(mode="w"),
    "tar-with-dots": tarred(files={f"./{name}": content for name, content in FILES.items()}),
    "tar-with-folders": tarred(("SET/", b"", tarfile.DIRTYPE, "")),
}
BAD = {
    "zip-parent": (zipped(("../evil.txt", b"x", REG)), "leaves the folder: ../evil.txt"),
    "zip-hidden-parent": (zipped(("SET/../../evil.txt", b"x", REG)), "leaves the folder"),
    "zip-backslash": (zipped(("..\\evil.txt", b"x", REG)), "leaves the folder"),
    "zip-absolute": (zipped((OUTSIDE, b"x", REG)), "leaves the folder"),
    "zip-drive": (zipped(("C:/evil.txt", b"x", REG)), "leaves the folder"),
    "zip-link": (zipped(("SET/link", b"/etc/passwd", LNK)), "link or special file: SET/link"),
    "zip-fifo": (zipped(("SET/pipe", b"", FIFO)), "link or special file"),
    "zip-bomb": (zipped(files={"SET/bomb": bytes(5_000_000)}), "more than was published"),
    "zip-lying-bomb": (lying_zip(), "not a whole zip"),
    "zip-overlapping-bomb": (overlapping_zip(), "more than was published|not a whole zip"),
    "zip-many": (zipped(files={f"SET/{i}": b"" for i in range(60)}), "more than 50 files"),
    "zip-truncated": (zipped()[:-60], "not a whole zip"),
    "zip-damaged": (
        zipped(method=zipfile.ZIP_STORED).replace(bytes([2]) * 5000, bytes([2]) * 4999 + b"!"),
        "not a whole zip",
    ),
    "tar-parent": (tarred(("../evil.txt", b"x", R, "")), "leaves the folder: ../evil.txt"),
    "tar-absolute": (tarred((OUTSIDE, b"x", R, "")), "leaves the folder"),
    "tar-folder-outside": (tarred(("../evil", b"", tarfile.DIRTYPE, "")), "leaves the folder"),
    "tar-symlink": (tarred(("SET/link", b"", tarfile.SYMTYPE, "/etc")), "link or special file: SET/link"),
    "tar-hardlink": (tarred(("SET/link", b"", tarfile.LNKTYPE, "SET/0/a.bin")), "link or special file"),
    "tar-through-symlink": (
        tarred(("SET/l", b"", tarfile.SYMTYPE, ".."), ("SET/l/evil.txt", b"x", R, "")),
        "link or special file",
    ),
    "tar-device": (tarred(("SET/null", b"", tarfile.CHRTYPE, "")), "link or special file"),
    "tar-fifo": (tarred(("SET/pipe", b"", tarfile.FIFOTYPE, "")), "link or special file"),
    "tar-bomb": (tarred(files={"SET/bomb": bytes(5_000_000)}), "more than was published"),
    "tar-header-bomb": (header_bomb(), "more than was published"),
    "tar-tail-bomb": (tarred() + gzip.compress(bytes(5_000_000)), "more than was published"),
    "tar-many": (tarred(files={f"SET/{i}": b"" for i in range(60)}), "more than 50 files"),
    "tar-many-folders": (tarred(*((f"SET/{i}", b"", tarfile.DIRTYPE, "") for i in range(60))), "more than 50 files"),
    "tar-truncated": (tarred()[:-60], "not a whole tar.gz"),
    "tar-truncated-plain": (tarred(mode="w")[:9000], "not a whole tar"),
    "page": (b"<!DOCTYPE html><html></html>", "is not a zip"),
    "empty": (b"", "is not a zip"),
}


@pytest.fixture(autouse=True)
def small_limits(monkeypatch):
    monkeypatch.setattr(unpack, "HEADERS", 500_000)
    monkeypatch.setattr(unpack, "MAX_FILES", 50)


@pytest.mark.parametrize("content", GOOD.values(), ids=GOOD)
def test_good_archives(tmp_path, content):
    (tmp_path / "any name").write_bytes(content)
    unpack.unpack_archive(tmp_path / "any name", tmp_path / "out", LIMIT)
    assert contents(tmp_path / "out") == FILES


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD)
def test_bad_archives(tmp_path, content, message):
    path, out = tmp_path / "by hand.zip", tmp_path / "inside/staging/out"
    path.write_bytes(content)
    with pytest.raises(unpack.FetchError, match=message) as error:
        unpack.unpack_archive(path, out, LIMIT)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == content
    if Path(OUTSIDE).exists():
        Path(OUTSIDE).unlink()
        pytest.fail("a file was written outside the folder")
    outside = [p for p in tmp_path.rglob("*") if p != path and out not in (p, *p.parents) and p not in out.parents]
    assert outside == []
    assert sum(map(len, contents(out).values())) <= LIMIT + unpack.HEADERS
    assert not any(place.is_symlink() for place in out.rglob("*"))


def test_a_page_is_refused_whatever_it_is_called(tmp_path):
    for page in (b"\n<!DOCTYPE html><html></html>", b"<HTML>", b"<?xml version='1.0'?>"):
        (tmp_path / "list.txt").write_bytes(page)
        with pytest.raises(unpack.Damaged, match="web page"):
            unpack.refuse_page(tmp_path / "list.txt")


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_merge_adds_what_is_missing_and_replaces_nothing(tmp_path):
    data = write(tmp_path / "data", {"a": "a", "mine": "mine"})
    unpack.merge(write(tmp_path / "one", {"a": "a", "b/c": "c"}), data)
    before = {"a": b"a", "mine": b"mine", "b/c": b"c"}
    assert contents(data) == before
    for i, clash in enumerate([{"A": "new", "a": "other"}, {"A": "new", "a/deeper": "x"}, {"A": "new", "b": "file"}]):
        with pytest.raises(unpack.FetchError, match="is not what the archive holds"):
            unpack.merge(write(tmp_path / str(i), clash), data)
        assert contents(data) == before, "all is looked at before anything moves"


# --- rar: through a tool, here a stand-in of our own that does what we tell it ---------------------------------------

WRITE = "(folder / 'SET').mkdir(); (folder / 'SET/a.mat').write_bytes(b'MATLAB')"


@pytest.fixture
def rar(tmp_path, monkeypatch):
    """rar(**programs) -> an archive, with these tools on an otherwise empty PATH; their code knows `folder`."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    def make(**programs: str) -> Path:
        for name, code in programs.items():
            path = tmp_path / "bin" / name
            path.with_suffix(".py").write_text(
                f"import os, pathlib, sys\nfolder = pathlib.Path(sys.argv[-1])\n{code}\n"
            )
            path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(path))}.py "$@"\n')
            path.chmod(0o755)
        (tmp_path / "set.rar").write_bytes(b"Rar!\x1a\x07\x00 the rest is the tool's affair")
        return tmp_path / "set.rar"

    return make


def test_rar_that_one_tool_cannot_read(tmp_path, rar):
    archive = rar(unrar=f"{WRITE}; (folder / 'half').touch(); sys.exit('not supported')", bsdtar=WRITE)
    unpack.unpack_archive(archive, tmp_path / "out", LIMIT)
    assert contents(tmp_path / "out") == {"SET/a.mat": b"MATLAB"}


def test_rar_without_a_tool(tmp_path, rar):
    with pytest.raises(unpack.FetchError, match="install one of unrar"):
        unpack.unpack_archive(rar(), tmp_path / "out", LIMIT)


RARS = {
    "symlink": (f"{WRITE}; os.symlink('/etc', folder / 'SET/link')", "link or special file: SET/link"),
    "hardlink": (f"{WRITE}; os.link(folder / 'SET/a.mat', folder / 'SET/b.mat')", "link or special file"),
    "fifo": (f"{WRITE}; os.mkfifo(folder / 'pipe')", "link or special file: pipe"),
    "bomb": ("(folder / 'bomb').write_bytes(bytes(3_000_000))", "more than was published"),
    "many": ("[(folder / str(i)).touch() for i in range(99)]", "more than 50 files"),
    "damaged": (f"{WRITE}; sys.exit('checksum error in SET/a.mat')", "unrar: checksum error in SET/a.mat"),
}


@pytest.mark.parametrize(("code", "message"), RARS.values(), ids=RARS)
def test_rar_tools_are_not_trusted(tmp_path, rar, code, message):
    with pytest.raises(unpack.FetchError, match=message):
        unpack.unpack_archive(rar(unrar=code), tmp_path / "out", LIMIT)
