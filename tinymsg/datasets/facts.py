"""What is known of the published data sets: counts, licences, archives and how they lie; read from facts.toml."""

import tomllib
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
    archives: tuple[str, ...]  # names in ARCHIVES
    frames: range | None = None
    note: str = ""
    next: tuple[str, ...] | None = None  # {folder}, {root} (its option, "" for data/) and {blur} are filled in


@dataclass(frozen=True)
class Archive:
    """One file to download: an archive to unpack, or a .txt list to put in its place."""

    name: str
    mirrors: tuple[str, ...]
    page: str
    into: str
    contents: dict[str, range]  # {blur} in a pattern is GoPro's choice
    pixels: tuple[tuple[int, int], ...] = ()
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


def _read(path: Path) -> tuple[dict[str, DataSet], dict[str, Archive]]:
    """Sets and archives by name. Raises: TypeError for a fact that no field is for."""
    facts = tomllib.loads(path.read_text(encoding="utf-8"))
    sets, archives = {}, {}
    for name, fields in facts["sets"].items():
        for key in {"archives", "next"} & fields.keys():
            fields[key] = tuple(fields[key])
        if "frames" in fields:
            fields["frames"] = _numbers(fields["frames"])
        sets[name] = DataSet(**fields)
    for name, fields in facts["archives"].items():
        fields["mirrors"], fields["pixels"] = tuple(fields["mirrors"]), tuple(map(tuple, fields.get("pixels", ())))
        fields["contents"] = {pattern: _numbers(count) for pattern, count in fields["contents"].items()}
        archives[name] = Archive(name, **fields)
    return sets, archives


SETS, ARCHIVES = _read(Path(__file__).with_name("facts.toml"))
