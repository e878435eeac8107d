"""Unpack an archive that nobody vouches for: nothing outside the folder, no links, no more than was published."""

import filecmp
import gzip
import shutil
import subprocess
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import BinaryIO

JUNK = {"__MACOSX", ".DS_Store", "Thumbs.db"}
MAX_FILES = 60_000
HEADERS = 64 << 20  # bytes of a tar that may be anything but the content of its files
# All of them refuse or strip names that leave the folder; bsdtar is the easiest to come by, but does not read every rar
RAR_TOOLS = {
    "unrar": ("unrar", "x", "-y", "-p-", "{archive}", "{folder}/"),
    "7z": ("7z", "x", "-y", "-p", "-o{folder}", "{archive}"),
    "7zz": ("7zz", "x", "-y", "-p", "-o{folder}", "{archive}"),
    "bsdtar": ("bsdtar", "-xf", "{archive}", "-C", "{folder}"),
}
BROKEN = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile)


class FetchError(Exception):
    """Why the data could not be had, in one sentence."""


class Damaged(FetchError):
    """The archive itself is broken: fetching it again may help."""


def archive_kind(path: Path) -> str:
    """zip, tar, tar.gz or rar, by its first bytes, whatever it is called. Raises: Damaged if it is none of them."""
    with open(path, "rb") as file:
        start = file.read(512)
    for kind, magic, at in (("zip", b"PK", 0), ("tar.gz", b"\x1f\x8b", 0), ("rar", b"Rar!", 0), ("tar", b"ustar", 257)):
        if start[at:].startswith(magic):
            if kind == "zip" and not zipfile.is_zipfile(path):  # its list of files stands at the end
                raise Damaged(f"{path.name} is not a whole zip archive: its end is missing")
            return kind
    raise Damaged(f"{path.name} is not a zip, tar, tar.gz or rar archive")


def refuse_page(path: Path) -> None:
    """Raise Damaged for a web page, which servers send instead of a file that they do not give away."""
    with open(path, "rb") as file:
        if file.read(512).lstrip().lower().startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
            raise Damaged(f"{path.name} is a web page, not the file")


def unpack_archive(path: Path, folder: Path, max_bytes: int) -> None:
    """Unpack `path` into `folder`, which must not exist yet and is the caller's to remove.

    Raises: FetchError if the archive is not what it should be or holds more than max_bytes; Damaged if it is broken.
    """
    kind = archive_kind(path)
    folder.mkdir(parents=True)
    try:
        if kind == "zip":
            _unpack_zip(path, folder, max_bytes)
        elif kind == "rar":
            _unpack_rar(path, folder, max_bytes)
        else:
            _unpack_tar(path, folder, max_bytes)
    except tarfile.FilterError as error:
        raise FetchError(f"{path.name} holds what must not be unpacked: {error}") from None
    except BROKEN as error:
        raise Damaged(f"{path.name} is not a whole {kind} archive ({error or type(error).__name__})") from None
    except (NotImplementedError, RuntimeError) as error:  # zipfile's words for encryption and unknown methods
        raise FetchError(f"{path.name} cannot be unpacked ({error})") from None


def _unpack_zip(path: Path, folder: Path, max_bytes: int) -> None:
    with zipfile.ZipFile(path) as file:
        members = file.infolist()
        for member in members:  # all names before anything is written; zipfile would only bend them, and not say so
            kind = (member.external_attr >> 16) & 0o170000
            _refuse_unless(path, member.filename, kind in (0, 0o100000, 0o040000))
        # zipfile gives no more than a member claims, and checks its CRC
        _limit(path, sum(member.file_size for member in members), len(members), max_bytes)
        for member in members:
            if not _is_junk(member.filename):
                file.extract(member, folder)


def _unpack_tar(path: Path, folder: Path, max_bytes: int) -> None:
    with open(path, "rb") as raw:
        source = gzip.GzipFile(fileobj=raw) if archive_kind(path) == "tar.gz" else raw
        stream = _Limited(source, path, max_bytes + HEADERS)
        with tarfile.open(fileobj=stream, mode="r|", bufsize=64 * tarfile.BLOCKSIZE) as file:
            for count, member in enumerate(file, 1):
                _limit(path, 0, count, max_bytes)
                _refuse_unless(path, member.name, member.isreg() or member.isdir())
                if not _is_junk(member.name):
                    file.extract(member, folder, filter="data")
        while stream.read(1 << 20):  # to the end of a tar.gz, where the checksum of the whole stands
            pass


class _Limited:
    """A stream that gives no more than allowed, whatever it is: contents, headers, or what follows the end."""

    def __init__(self, source: BinaryIO, path: Path, max_bytes: int):
        self.source, self.path, self.max_bytes, self.given = source, path, max_bytes, 0

    def read(self, count: int) -> bytes:
        """At most `count` bytes."""
        content = self.source.read(count)
        self.given += len(content)
        _limit(self.path, self.given, 0, self.max_bytes)
        return content


def _unpack_rar(path: Path, folder: Path, max_bytes: int) -> None:
    """Through a tool on the PATH; what it wrote is looked over before anything is used."""
    tools = [name for name in RAR_TOOLS if shutil.which(name)]
    if not tools:
        raise FetchError(f"{path.name} is a rar archive: install one of {', '.join(RAR_TOOLS)} to unpack it")
    problems = []
    for tool in tools:
        command = [part.format(archive=path.absolute(), folder=folder.absolute()) for part in RAR_TOOLS[tool]]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
        found = list(folder.rglob("*"))
        for place in found:
            plain = not place.is_symlink() and (place.is_dir() or (place.is_file() and place.stat().st_nlink == 1))
            _refuse_unless(path, place.relative_to(folder).as_posix(), plain)
        _limit(path, sum(place.stat().st_size for place in found if place.is_file()), len(found), max_bytes)
        if done.returncode == 0:
            return
        problems.append(f"{tool}: {next(iter(done.stderr.splitlines()), done.returncode)}")
        shutil.rmtree(folder)
        folder.mkdir()
    # Not Damaged: more often the tool cannot read this kind of rar, and fetching it again would not help
    raise FetchError(f"{path.name} cannot be unpacked ({'; '.join(problems)}): it is damaged, or needs another tool")


def _refuse_unless(path: Path, name: str, plain: bool) -> None:
    """Raise FetchError for a member that is neither file nor folder, or whose name leaves the folder."""
    parts = PurePosixPath(name.replace("\\", "/"))
    if not plain:
        raise FetchError(f"{path.name} holds a link or special file: {name}")
    if parts.is_absolute() or ".." in parts.parts or ":" in "".join(parts.parts[:1]):
        raise FetchError(f"{path.name} holds a path that leaves the folder: {name}")


def _limit(path: Path, size: int, count: int, max_bytes: int) -> None:
    """Raise FetchError for more bytes or members than were published."""
    if size > max_bytes:
        raise FetchError(f"{path.name} unpacks to far more than was published: it is another file, or a bomb")
    if count > MAX_FILES:
        raise FetchError(f"{path.name} holds more than {MAX_FILES} files: not what was published")


def _is_junk(name: str) -> bool:
    """What systems leave beside the files of their users."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return bool(JUNK & set(parts)) or any(part.startswith("._") for part in parts)


def files_below(folder: Path) -> list[Path]:
    """All files below a folder, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def merge(source: Path, target: Path) -> None:
    """Move a folder to `target`. Files there stay; one that differs stops everything before anything moves."""
    if not target.exists():  # the usual case: all at once
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)
        return
    moves = [(path, target / path.relative_to(source)) for path in files_below(source)]
    for path, place in moves:
        blocked = next((parent for parent in place.parents if parent.exists() and not parent.is_dir()), None)
        if blocked or (place.exists() and not (place.is_file() and filecmp.cmp(path, place, shallow=False))):
            raise FetchError(f"{blocked or place} exists and is not what the archive holds; move it away first")
    for path, place in moves:
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            path.rename(place)
