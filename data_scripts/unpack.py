"""Unpack an archive that nobody vouches for: nothing outside the folder, no links, no bombs. Standard library only.

Limits hold for what really comes out, not for what headers claim. Everything goes to a folder of its own first.
"""

import gzip
import os
import shutil
import stat
import subprocess
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from archive import Archive, Damaged, FetchError, Progress

JUNK = {"__MACOSX", ".DS_Store", "Thumbs.db"}
MAX_DEPTH = 32  # folders in folders
HEADERS = 64 << 20  # bytes of a tar that may be anything but the content of its files
# All of them refuse or strip names that leave the folder; what they leave is looked over too. Tried in this order: bsdtar is
# the easiest to come by, but does not read every rar.
RAR_TOOLS: dict[str, tuple[str, ...]] = {
    "unrar": ("unrar", "x", "-y", "-p-", "{archive}", "{folder}/"),
    "7z": ("7z", "x", "-y", "-p", "-o{folder}", "{archive}"),
    "7zz": ("7zz", "x", "-y", "-p", "-o{folder}", "{archive}"),
    "bsdtar": ("bsdtar", "-xf", "{archive}", "-C", "{folder}"),
}


def archive_kind(path: Path) -> str:
    """zip, tar, tar.gz or rar, by its first bytes, whatever it is called. Raises: Damaged if it is none of them."""
    with open(path, "rb") as file:
        start = file.read(512)
    if start.startswith(b"PK"):
        try:
            zipfile.ZipFile(path).close()  # its list of files stands at the end
        except (zipfile.BadZipFile, ValueError, OSError) as error:
            raise Damaged(f"{path.name} is not a whole zip archive ({error})") from None
        return "zip"
    for kind, magic, at in (("tar.gz", b"\x1f\x8b", 0), ("rar", b"Rar!\x1a\x07", 0), ("tar", b"ustar", 257)):
        if start[at : at + len(magic)] == magic:
            return kind
    what = "a web page" if start.lstrip()[:20].lower().startswith((b"<!doctype", b"<html")) else "something else"
    raise Damaged(f"{path.name} is not a zip, tar, tar.gz or rar archive but {what}")


class Intake:
    """Takes in files below a folder, and refuses names, links and amounts that an honest archive would not have."""

    def __init__(self, archive: Archive, path: Path, folder: Path, report: Callable[[str], None]):
        self.archive, self.path, self.folder = archive, path, folder
        self.progress = Progress(f"unpacking {path.name}", archive.expected_unpacked, report)
        self.bytes = self.members = 0

    def place(self, name: str) -> Path | None:
        """Where a member goes; None if it is not wanted. Raises: FetchError if its name leaves the folder."""
        plain = PurePosixPath(name.replace("\\", "/"))
        if plain.is_absolute() or ".." in plain.parts or "\0" in name or ":" in "".join(plain.parts[:1]):
            raise FetchError(f"{self.path.name} holds a path that leaves the folder: {name}")
        if len(plain.parts) > MAX_DEPTH:
            raise FetchError(f"{self.path.name} holds folders more than {MAX_DEPTH} deep: not what was published")
        if not plain.parts or JUNK & set(plain.parts) or plain.name.startswith("._"):
            return None
        if self.archive.only and f"/{self.archive.only}/" not in f"/{plain}":
            return None
        return self.folder / plain

    def refuse(self, what: str, name: str) -> None:
        """Say that the archive holds something which is neither a file nor a folder."""
        raise FetchError(f"{self.path.name} holds a {what}: {name}")

    def write(self, source: BinaryIO, place: Path) -> None:
        """Copy a member to its place, counting what comes."""
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(place, "xb") as file:
                while chunk := source.read(1 << 20):
                    self.count_bytes(len(chunk))
                    self.progress.add(len(chunk))
                    file.write(chunk)
        except FileExistsError:
            raise FetchError(f"{self.path.name} holds the same name twice: {place.relative_to(self.folder)}") from None

    def count_members(self, count: int = 1) -> None:
        """`count` more files and folders, whether or not they are wanted."""
        self.members += count
        if self.members > self.archive.max_files:
            raise FetchError(f"{self.path.name} holds more than {self.archive.max_files} files: not what was published")

    def count_bytes(self, count: int) -> None:
        """`count` more bytes came out."""
        self.bytes += count
        if self.bytes > self.archive.max_unpacked:
            raise FetchError(
                f"{self.path.name} unpacks to more than {self.archive.max_unpacked / 1e9:.1f} GB: not what was published"
            )


def unpack_archive(archive: Archive, path: Path, folder: Path, report: Callable[[str], None] = print) -> None:
    """Unpack `path` into `folder`, which must not exist yet and is the caller's to remove.

    Raises: FetchError if the archive is not what it should be; Damaged if it is broken.
    """
    intake, kind = Intake(archive, path, folder, report), archive_kind(path)
    folder.mkdir(parents=True)
    try:
        {"zip": _unpack_zip, "tar": _unpack_tar, "tar.gz": _unpack_tar, "rar": _unpack_rar}[kind](intake)
        intake.progress.end()
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise Damaged(f"{path.name} is not a whole {kind} archive ({error or type(error).__name__})") from None
    except (NotImplementedError, RuntimeError) as error:  # zipfile's words for encryption and unknown methods
        raise FetchError(f"{path.name} cannot be unpacked ({error})") from None


def _unpack_zip(intake: Intake) -> None:
    with zipfile.ZipFile(intake.path) as file:
        members = file.infolist()
        intake.count_members(len(members))
        for member in members:  # everything is looked at before anything is written
            kind = (member.external_attr >> 16) & 0o170000
            if kind == 0o120000:
                intake.refuse("link", member.filename)
            if kind not in (0, 0o100000, 0o040000):
                intake.refuse("special file", member.filename)
            intake.place(member.filename)
        intake.progress.total = sum(member.file_size for member in members)
        intake.count_bytes(intake.progress.total)  # claimed; what comes is counted below
        intake.bytes = 0
        for member in members:
            place = intake.place(member.filename)
            if place is not None and not member.is_dir():
                with file.open(member) as source:
                    intake.write(source, place)


class _Allowance:
    """A stream that gives no more than allowed: headers of a tar may themselves be a bomb."""

    def __init__(self, source: BinaryIO, name: str):
        self.source, self.name, self.left = source, name, HEADERS

    def read(self, count: int) -> bytes:
        content = self.source.read(count)
        self.left -= len(content)
        if self.left < 0:
            raise FetchError(f"{self.name} unpacks to more than its files hold: not what was published")
        return content


def _unpack_tar(intake: Intake) -> None:
    with open(intake.path, "rb") as raw:
        source = gzip.GzipFile(fileobj=raw) if archive_kind(intake.path) == "tar.gz" else raw
        stream = _Allowance(source, intake.path.name)
        # 64 blocks at a time: what is read ahead is small against HEADERS
        with tarfile.open(fileobj=stream, mode="r|", bufsize=64 * tarfile.BLOCKSIZE) as file:
            for member in file:
                intake.count_members()
                stream.left += member.size + 8 * tarfile.BLOCKSIZE  # its content, padding and headers
                if member.islnk() or member.issym():
                    intake.refuse("link", member.name)
                if not (member.isreg() or member.isdir()):
                    intake.refuse("special file", member.name)
                place = intake.place(member.name)
                if member.isdir():
                    continue
                if place is not None:
                    intake.write(file.extractfile(member), place)
                else:
                    intake.count_bytes(member.size)
        while stream.read(1 << 20):  # to the end of a tar.gz, where the checksum of the whole stands
            pass


def _unpack_rar(intake: Intake) -> None:
    """Through a tool on the PATH; its output is watched while it works and looked over before anything is used."""
    tools = [name for name in RAR_TOOLS if shutil.which(name)]
    if not tools:
        raise FetchError(
            f"{intake.path.name} is a rar archive, and none of {', '.join(RAR_TOOLS)} is installed: "
            f"install one of them (for example the package libarchive-tools, which has bsdtar)"
        )
    raw, problems = intake.folder / ".raw", []
    for tool in tools:
        raw.mkdir()
        problem = _run_rar_tool(tool, intake, raw)
        if problem is None:
            break
        problems.append(f"{tool}: {problem}")
        shutil.rmtree(raw)
    else:
        # Not Damaged: more often the tool cannot read this kind of rar, and fetching it again would not help
        raise FetchError(
            f"{intake.path.name} cannot be unpacked ({'; '.join(problems)}): it is damaged, or needs another tool; "
            f"known are {', '.join(RAR_TOOLS)}"
        )
    for path in files_below(raw):
        place = intake.place(path.relative_to(raw).as_posix())
        if place is not None:
            place.parent.mkdir(parents=True, exist_ok=True)
            path.rename(place)
    shutil.rmtree(raw)


def _run_rar_tool(tool: str, intake: Intake, raw: Path) -> str | None:
    """None if the tool unpacked everything below `raw`, else what it complained of first."""
    command = [part.format(archive=intake.path.absolute(), folder=raw.absolute()) for part in RAR_TOOLS[tool]]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors)
        try:
            while process.poll() is None:
                _look_over(intake, raw)
                time.sleep(0.05)
        finally:
            process.kill()
            process.wait()
        _look_over(intake, raw)
        errors.seek(0)
        lines = errors.read().decode(errors="replace").strip().splitlines()
    return None if process.returncode == 0 else (lines or [f"exit code {process.returncode}"])[0]


def _look_over(intake: Intake, raw: Path) -> None:
    """Refuse links, special files, too many files and too many bytes in what a tool has written so far."""
    intake.members = intake.bytes = 0
    for path in _walk(raw):
        try:
            status = path.lstat()
        except FileNotFoundError:  # the tool renamed it meanwhile
            continue
        name = path.relative_to(raw).as_posix()
        if stat.S_ISLNK(status.st_mode) or (stat.S_ISREG(status.st_mode) and status.st_nlink > 1):
            intake.refuse("link", name)
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            intake.refuse("special file", name)
        intake.count_members()
        intake.count_bytes(status.st_size if stat.S_ISREG(status.st_mode) else 0)


def _walk(folder: Path) -> Iterator[Path]:
    """Everything below a folder, in order, links not followed."""
    for place, folders, files in os.walk(folder):
        folders.sort()
        yield from (Path(place, name) for name in sorted(folders + files))


def files_below(folder: Path) -> list[Path]:
    """All files below a folder, sorted."""
    return sorted(path for path in _walk(folder) if path.is_file())


def common_top(names: list[PurePosixPath], into: str) -> PurePosixPath:
    """How much of `into`, from its end or wholly, most names of an archive already begin with.

    For into = "REDS/val/val_blur" an archive may begin with REDS/val/val_blur/, val/val_blur/ or val_blur/, or with none of it.
    """
    parts = PurePosixPath(into).parts
    for first in range(len(parts)):
        top = parts[first:]
        if sum(name.parts[: len(top)] == top for name in names) > len(names) / 2:
            return PurePosixPath(*top)
    return PurePosixPath()


def arrange(unpacked: Path, folder: Path, into: str) -> None:
    """Move everything below `unpacked` to `folder`/`into`, without the part of `into` that the archive itself repeats."""
    files = [path.relative_to(unpacked) for path in files_below(unpacked)]
    top = common_top([PurePosixPath(name.as_posix()) for name in files], into)
    for name in files:
        place = folder / into / (name.relative_to(top) if name.is_relative_to(top) else name)
        place.parent.mkdir(parents=True, exist_ok=True)
        (unpacked / name).rename(place)


def merge(staging: Path, folder: Path, into: str) -> None:
    """Move staging/`into` to folder/`into`. Files that are there stay; one that differs stops everything before it begins."""
    if not (folder / into).exists():  # the usual case: all at once
        (folder / into).parent.mkdir(parents=True, exist_ok=True)
        (staging / into).rename(folder / into)
        return
    moves = [(path, folder / path.relative_to(staging)) for path in files_below(staging / into)]
    for source, place in moves:
        blocked = next((parent for parent in place.parents if parent.exists() and not parent.is_dir()), None)
        if blocked or (place.exists() and not _same(source, place)):
            raise FetchError(f"{blocked or place} exists and is not what the archive holds; move it away first")
    for source, place in moves:
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            source.rename(place)


def _same(one: Path, other: Path) -> bool:
    return other.is_file() and one.stat().st_size == other.stat().st_size and one.read_bytes() == other.read_bytes()
