"""What is known of the published data sets: counts, licences, archives and how they lie; read from facts.toml."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DataSet:
    """A published set; facts.toml says what each field means."""

    title: str
    script: str
    counts: dict[str, int]
    licence: str
    citation: str
    archives: Sequence[str]  # names in ARCHIVES
    frames: range | None = None
    note: str = ""
    next: Sequence[str] | None = None  # {folder}, {root} (its option, "" for data/) and {blur} are filled in


@dataclass(frozen=True)
class Archive:
    """One file to download: an archive to unpack, or a .txt list to put in its place."""

    name: str
    mirrors: Sequence[str]
    page: str
    into: str
    contents: dict[str, range]  # {blur} in a pattern is GoPro's choice
    pixels: Sequence[tuple[int, int]] = ()
    size: int | None = None
    unpacked: int = 0
    md5: str | None = None
    sha256: str | None = None
    split: str | None = None

    @property
    def plain(self) -> bool:
        """A file to use as it is."""
        return self.name.endswith(".txt")

    @property
    def expected_unpacked(self) -> int:
        """Bytes that it takes on the disk, roughly: pictures do not shrink in archives."""
        return self.unpacked or self.size or 0


def _numbers(published: int | list[int]) -> range:
    """n, or [least, most], as a range that holds what is allowed."""
    least, most = (published, published) if isinstance(published, int) else published
    return range(least, most + 1)


def _set(fields: dict) -> DataSet:
    if "frames" in fields:
        fields["frames"] = _numbers(fields["frames"])
    return DataSet(**fields)


def _archive(name: str, fields: dict) -> Archive:
    fields["contents"] = {pattern: _numbers(count) for pattern, count in fields["contents"].items()}
    fields["pixels"] = [(w, h) for w, h in fields.get("pixels", [])]
    return Archive(name, **fields)


_FACTS = tomllib.loads(Path(__file__).with_name("facts.toml").read_text(encoding="utf-8"))
SETS: dict[str, DataSet] = {name: _set(fields) for name, fields in _FACTS["sets"].items()}
ARCHIVES: dict[str, Archive] = {name: _archive(name, fields) for name, fields in _FACTS["archives"].items()}
