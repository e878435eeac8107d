"""What a data set is made of, what is remembered of it, and the space and checksums around it. Standard library only."""

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

NOT_STATED = "not stated by its authors"


class FetchError(Exception):
    """Why the data could not be had, in one sentence."""


class Damaged(FetchError):
    """The archive itself is broken: fetching it again may help."""


@dataclass(frozen=True)
class Archive:
    """One downloadable file of a data set: a zip, tar, tar.gz or rar to unpack, or a plain .txt list to put in its place.

    missing(folder) says what is not there below the data folder, None if nothing. Its result decides whether this archive
    is needed at all, whether what it held may be moved into place, and whether the script has succeeded.
    """

    name: str  # file name it gets in the data folder
    mirrors: tuple[str, ...]  # tried in this order
    into: (
        str  # folder, below the data folder, where its content goes; the archive may or may not repeat (the end of) it
    )
    missing: Callable[[Path], str | None]
    size: int | None = (
        None  # bytes as published, often rounded: a server that offers something else by over 10% has another file
    )
    unpacked: int | None = (
        None  # bytes after unpacking, roughly; pictures do not shrink in archives, so `size` is the default
    )
    md5: str | None = None  # where the publisher or a well-known project gives one
    sha256: str | None = None
    only: str = ""  # unpack only what lies below this folder of the archive
    pages: tuple[str, ...] = ()  # pages for people, where it can be had by hand

    max_files: int = 60_000  # more files and folders than this are not this data set

    @property
    def plain(self) -> bool:
        """A file to use as it is."""
        return self.name.endswith(".txt")

    @property
    def max_unpacked(self) -> int:
        """More bytes than this are a bomb or the wrong file."""
        return 2 * self.expected_unpacked + 10**9

    @property
    def expected_unpacked(self) -> int:
        """Bytes that it takes on the disk, roughly."""
        return self.unpacked or self.size or 0


@dataclass(frozen=True)
class DataSet:
    """What a script fetches, and what it tells."""

    key: str  # its record is data/<key>.json
    title: str
    licence: str
    citation: str
    archives: tuple[Archive, ...]
    next_commands: tuple[str, ...]  # {folder} is the data folder, {root} the option that names it where it is not data/
    choices: dict[str, str] = field(default_factory=dict)  # explicit choices, recorded with the data
    notes: tuple[str, ...] = ()  # what to know before using it


class Record:
    """data/<key>.json: which bytes the data came from, and what was chosen. Written whole or not at all."""

    def __init__(self, folder: Path, key: str):
        self.path = folder / f"{key}.json"
        self.archives: dict[str, dict] = {}
        self.choices: dict[str, str] = {}
        if self.path.exists():
            try:
                saved = json.loads(self.path.read_text())
                self.archives, self.choices = dict(saved["archives"]), dict(saved["choices"])
            except (ValueError, KeyError, TypeError) as error:
                raise FetchError(
                    f"{self.path} is not a record of this script ({type(error).__name__}); move it away"
                ) from None

    def remember(self, name: str, sha256: str, size: int, source: str) -> None:
        """Note what an archive was when its content had been verified."""
        self.archives[name] = {"sha256": sha256, "bytes": size, "from": source, "on": time.strftime("%Y-%m-%d")}

    def save(self, data: DataSet) -> None:
        """Write it beside the data."""
        about = {"data_set": data.title, "licence": data.licence, "citation": data.citation}
        write_whole(
            self.path, json.dumps(about | {"choices": self.choices, "archives": self.archives}, indent=2) + "\n"
        )


def write_whole(path: Path, text: str) -> None:
    """Write a small file by renaming: a reader never sees half of it."""
    new = path.with_name(path.name + ".new")
    new.write_text(text)
    os.replace(new, path)


def check_space(folder: Path, need: int) -> None:
    """Raise FetchError unless the disk of `folder`, which need not exist yet, has `need` bytes free."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < need:
        raise FetchError(f"{need / 1e9:.1f} GB are needed below {folder}, {free / 1e9:.1f} GB are free")


def checksums(path: Path, report: Callable[[str], None]) -> tuple[str, str]:
    """(SHA-256, MD5) of a file."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    progress = Progress(f"checking {path.name}", path.stat().st_size, report)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            sha256.update(chunk)
            md5.update(chunk)
            progress.add(len(chunk))
    progress.end()
    return sha256.hexdigest(), md5.hexdigest()


def check_known(
    path: Path, archive: Archive, report: Callable[[str], None], any_checksum: bool = False, told: str | None = None
) -> str:
    """SHA-256 of a file.

    Args:
        any_checksum: only report a published checksum that is another.
        told: SHA-256 that the server names, if it does: how the transfer is checked, so that `any_checksum` does not matter.
    Raises: Damaged if a checksum is another.
    """
    sha256, md5 = checksums(path, report)
    expected = (
        (archive.md5, md5, "MD5", any_checksum),
        (archive.sha256, sha256, "SHA-256", any_checksum),
        (told, sha256, "SHA-256", False),
    )
    for wanted, found, kind, tolerated in expected:
        if wanted is not None and wanted != found:
            problem = f"checksum of {path.name} is {kind} {found} instead of {wanted}: damaged, or another version"
            if not tolerated:
                raise Damaged(
                    problem
                    + (
                        ""
                        if wanted == told
                        else " (--any-checksum takes it; counts and sizes are verified all the same)"
                    )
                )
            report(f"{problem}; taken all the same, as you asked")
    return sha256


class Progress:
    """A line with bytes, rate and time left: rewritten in place on a terminal, else a new line now and then."""

    def __init__(self, what: str, total: int | None, report: Callable[[str], None], have: int = 0):
        self.what, self.total, self.report, self.have = what, total, report, have
        self.terminal = sys.stdout.isatty() and report is print
        self.interval = 0.5 if self.terminal else 20.0
        self.start = self.last = time.monotonic()
        self.first = have

    def add(self, count: int) -> None:
        """`count` more bytes are done."""
        self.have += count
        now = time.monotonic()
        if now - self.last >= self.interval:
            self.last = now
            self._show(self.line(now))

    def line(self, now: float) -> str:
        """What is shown at time `now` (of time.monotonic)."""
        rate = (self.have - self.first) / max(now - self.start, 1e-6)
        if not self.total:
            return f"{self.what}: {readable(self.have)}, {readable(rate)}/s"
        left = (self.total - self.have) / rate if rate else float("inf")
        share = f"{readable(self.have)} of {readable(self.total)} ({100 * self.have / self.total:.0f}%)"
        return f"{self.what}: {share}, {readable(rate)}/s, {duration(left)} left"

    def end(self) -> None:
        """Leave the last state standing."""
        if self.terminal and self.last > self.start:
            self._show(self.line(time.monotonic()))
            print()

    def _show(self, line: str) -> None:
        if self.terminal:
            print(f"\r{line:<90}", end="", flush=True)
        else:
            self.report(line)


def readable(count: float) -> str:
    """Bytes in the unit that suits them: 3 kB, 145.0 MB, 3.54 GB."""
    for unit, size, digits in (("GB", 1e9, 2), ("MB", 1e6, 1)):
        if count >= size:
            return f"{count / size:.{digits}f} {unit}"
    return f"{count / 1e3:.0f} kB"


def duration(seconds: float) -> str:
    """Seconds as 45 s, 12 min or 3 h 5 min."""
    if seconds == float("inf"):
        return "unknown time"
    minutes = int(seconds / 60 + 0.5)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
