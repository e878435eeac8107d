"""Archives that nobody vouches for: the right files, or one clear sentence and nothing written."""

import gzip
import io
import os
import stat
import struct
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from script_cases import program

sys.path.insert(0, str(Path(__file__).parents[1] / "data_scripts"))
import unpack  # noqa: E402
from archive import Archive, FetchError  # noqa: E402

FILES = {f"SET/{i}/{name}": bytes([i]) * 5000 for i in range(3) for name in ("a.bin", "b.bin")}
LIMIT = 1_000_000


class Small(Archive):
    """At most a megabyte and fifty files."""

    max_unpacked = LIMIT


def small(**changes) -> Archive:
    return Small("set.zip", (), "SET", lambda folder: None, **({"max_files": 50} | changes))


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
    "zip-link": (zipped(("SET/link", b"/etc/passwd", LNK)), "holds a link: SET/link"),
    "zip-fifo": (zipped(("SET/pipe", b"", FIFO)), "holds a special file"),
    "zip-bomb": (zipped(files={"SET/bomb": bytes(5_000_000)}), "unpacks to more than"),
    "zip-lying-bomb": (lying_zip(), "not a whole zip archive"),
    "zip-overlapping-bomb": (overlapping_zip(), "unpacks to more than|not a whole zip archive"),
    "zip-many": (zipped(files={f"SET/{i}": b"" for i in range(60)}), "more than 50 files"),
    "zip-deep": (zipped(("/".join("d" * 40), b"x", REG)), "more than 32 deep"),
    "zip-truncated": (zipped()[:-60], "not a whole zip"),
    "zip-damaged": (
        zipped(method=zipfile.ZIP_STORED).replace(bytes([2]) * 5000, bytes([2]) * 4999 + b"!"),
        "not a whole zip",
    ),
    "tar-parent": (tarred(("../evil.txt", b"x", R, "")), "leaves the folder: ../evil.txt"),
    "tar-absolute": (tarred((OUTSIDE, b"x", R, "")), "leaves the folder"),
    "tar-folder-outside": (tarred(("../evil", b"", tarfile.DIRTYPE, "")), "leaves the folder"),
    "tar-symlink": (tarred(("SET/link", b"", tarfile.SYMTYPE, "/etc")), "holds a link: SET/link"),
    "tar-hardlink": (tarred(("SET/link", b"", tarfile.LNKTYPE, "SET/0/a.bin")), "holds a link"),
    "tar-through-symlink": (
        tarred(("SET/l", b"", tarfile.SYMTYPE, ".."), ("SET/l/evil.txt", b"x", R, "")),
        "holds a link",
    ),
    "tar-device": (tarred(("SET/null", b"", tarfile.CHRTYPE, "")), "holds a special file"),
    "tar-fifo": (tarred(("SET/pipe", b"", tarfile.FIFOTYPE, "")), "holds a special file"),
    "tar-bomb": (tarred(files={"SET/bomb": bytes(5_000_000)}), "unpacks to more than"),
    "tar-header-bomb": (header_bomb(), "unpacks to more than"),
    "tar-tail-bomb": (tarred() + gzip.compress(bytes(5_000_000)), "unpacks to more than"),
    "tar-many": (tarred(files={f"SET/{i}": b"" for i in range(60)}), "more than 50 files"),
    "tar-many-folders": (tarred(*((f"SET/{i}", b"", tarfile.DIRTYPE, "") for i in range(60))), "more than 50 files"),
    "tar-twice": (tarred(("SET/0/a.bin", b"x", R, "")), "the same name twice"),
    "tar-truncated": (tarred()[:-60], "not a whole tar.gz"),
    "tar-truncated-plain": (tarred(mode="w")[:9000], "not a whole tar"),
    "page": (b"<!DOCTYPE html><html></html>", "but a web page"),
    "empty": (b"", "but something else"),
}


@pytest.fixture(autouse=True)
def small_headers(monkeypatch):
    monkeypatch.setattr(unpack, "HEADERS", 500_000)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in unpack.files_below(folder)}


@pytest.mark.parametrize("content", GOOD.values(), ids=GOOD)
def test_good_archives(tmp_path, content):
    (tmp_path / "any name").write_bytes(content)
    unpack.unpack_archive(small(), tmp_path / "any name", tmp_path / "out")
    assert contents(tmp_path / "out") == FILES


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD)
def test_bad_archives(tmp_path, content, message):
    path, out = tmp_path / "by hand.zip", tmp_path / "inside/staging/out"
    path.write_bytes(content)
    with pytest.raises(FetchError, match=message) as error:
        unpack.unpack_archive(small(), path, out)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == content
    if Path(OUTSIDE).exists():
        Path(OUTSIDE).unlink()
        pytest.fail("a file was written outside the folder")
    outside = [p for p in tmp_path.rglob("*") if p != path and out not in (p, *p.parents) and p not in out.parents]
    assert outside == []
    assert sum(map(len, contents(out).values()) if out.exists() else []) <= LIMIT


def test_only_a_part(tmp_path):
    (tmp_path / "set").write_bytes(zipped(("top/SET/0/c.bin", b"c", REG), ("SET/00/d.bin", b"", REG)))
    unpack.unpack_archive(small(only="SET/0"), tmp_path / "set", tmp_path / "out")
    assert set(contents(tmp_path / "out")) == {"SET/0/a.bin", "SET/0/b.bin", "top/SET/0/c.bin"}


@pytest.mark.parametrize(
    ("names", "into", "top"),
    [
        (["REDS/val/val_blur/0", "REDS/val/val_blur/1"], "REDS/val/val_blur", "REDS/val/val_blur"),
        (["val/val_blur/0/a", "val/val_blur/1/b"], "REDS/val/val_blur", "val/val_blur"),
        (["val_blur/0/a", "readme.txt", "val_blur/b"], "REDS/val/val_blur", "val_blur"),
        (["000/a", "001/b"], "REDS/val/val_blur", "."),
        (["GOPRO_Large/train/a", "GOPRO_Large/test/b", "readme.txt"], "GOPRO_Large", "GOPRO_Large"),
        ([], "SET", "."),
    ],
)
def test_an_archive_may_or_may_not_repeat_its_folder(names, into, top):
    assert unpack.common_top([PurePosixPath(name) for name in names], into) == PurePosixPath(top)


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_merge_adds_what_is_missing_and_replaces_nothing(tmp_path):
    data = write(tmp_path / "data", {"SET/a": "a", "SET/mine": "mine"})
    unpack.merge(write(tmp_path / "one", {"SET/a": "a", "SET/b/c": "c"}), data, "SET")
    assert contents(data) == {"SET/a": b"a", "SET/mine": b"mine", "SET/b/c": b"c"}
    before = contents(data)
    for clash in (
        {"SET/A": "new", "SET/a": "other"},
        {"SET/A": "new", "SET/a/deeper": "x"},
        {"SET/A": "new", "SET/b": "a folder there"},
    ):
        with pytest.raises(FetchError, match="exists and is not what the archive holds; move it away first"):
            unpack.merge(write(tmp_path / str(len(str(clash))), clash), data, "SET")
        assert contents(data) == before, "all is looked at before anything moves"


# --- rar: through a tool, here a stand-in of our own that does what we tell it -------------------------------------------


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """tool(name, code): puts a program on an otherwise empty PATH; the code knows `archive` and `folder`."""
    place = tmp_path / "bin"
    place.mkdir()
    monkeypatch.setenv("PATH", str(place))

    def make(name: str, code: str) -> None:
        program(
            place / name,
            f"import os, pathlib, sys, time\narchive, folder = sys.argv[-2:]\nfolder = pathlib.Path(folder)\n{code}\n",
        )

    return make


@pytest.fixture
def rar(tmp_path) -> Path:
    path = tmp_path / "set.rar"
    path.write_bytes(b"Rar!\x1a\x07\x00 the rest is the tool's affair")
    return path


WRITE = "(folder / 'SET').mkdir(); (folder / 'SET/a.mat').write_bytes(b'MATLAB')"


def test_rar_through_a_tool(tmp_path, tool, rar):
    tool("unrar", WRITE)
    unpack.unpack_archive(small(), rar, tmp_path / "out")
    assert contents(tmp_path / "out") == {"SET/a.mat": b"MATLAB"} and not (tmp_path / "out/.raw").exists()


def test_rar_that_one_tool_cannot_read(tmp_path, tool, rar):
    tool("unrar", f"{WRITE}; (folder / 'half').touch(); sys.exit('not supported')")
    tool("bsdtar", WRITE.replace("folder", "pathlib.Path(sys.argv[4])"))
    unpack.unpack_archive(small(), rar, tmp_path / "out")
    assert contents(tmp_path / "out") == {"SET/a.mat": b"MATLAB"}


def test_rar_without_a_tool(tmp_path, tool, rar):
    with pytest.raises(FetchError, match="none of unrar, 7z, 7zz, bsdtar is installed: install one of them"):
        unpack.unpack_archive(small(), rar, tmp_path / "out")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (f"{WRITE}; os.symlink('/etc', folder / 'SET/link')", "holds a link: SET/link"),
        (f"{WRITE}; os.link(folder / 'SET/a.mat', folder / 'SET/b.mat')", "holds a link"),
        (f"{WRITE}; os.mkfifo(folder / 'pipe')", "holds a special file: pipe"),
        ("(folder / 'bomb').write_bytes(bytes(3_000_000)); time.sleep(60)", "unpacks to more than"),
        ("[(folder / str(i)).touch() for i in range(99)]; time.sleep(60)", "more than 50 files"),
        (
            f"{WRITE}; sys.exit('checksum error in SET/a.mat')",
            "cannot be unpacked .unrar: checksum error in SET/a.mat.: it is",
        ),
    ],
    ids=["symlink", "hardlink", "fifo", "bomb", "many", "damaged"],
)
def test_rar_tools_are_not_trusted(tmp_path, tool, rar, code, message):
    tool("unrar", code)
    with pytest.raises(FetchError, match=message):
        unpack.unpack_archive(small(), rar, tmp_path / "out")
