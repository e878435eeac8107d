"""Counting pictures and reading their sizes from the first bytes. Standard library only."""

import struct
from collections.abc import Iterable
from pathlib import Path

# Start-of-frame markers of JPEG: all of C0..CF but the tables C4 and CC and the reserved C8
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def picture_size(path: Path) -> tuple[int, int] | None:
    """(width, height) in pixels of a PNG or JPEG as stored (EXIF turns are not applied), None if it is neither."""
    with open(path, "rb") as file:
        start = file.read(24)
        if start[:8] == b"\x89PNG\r\n\x1a\n" and start[12:16] == b"IHDR" and len(start) == 24:
            return struct.unpack(">II", start[16:24])
        if start[:2] != b"\xff\xd8":
            return None
        file.seek(2)
        while True:
            marker = file.read(2)
            while marker == b"\xff\xff":  # fill bytes
                marker = b"\xff" + file.read(1)
            if len(marker) < 2 or marker[0] != 0xFF:
                return None
            segment = file.read(7)
            if len(segment) < 7:
                return None
            if marker[1] in JPEG_FRAMES:
                height, width = struct.unpack(">HH", segment[3:7])
                return width, height
            file.seek(struct.unpack(">H", segment[:2])[0] - 7, 1)


def wrong_size(paths: Iterable[Path], sizes: tuple[tuple[int, int], ...]) -> str | None:
    """None if every picture has one of the sizes (w, h), else which one has not. No sizes: any readable one will do."""
    for path in paths:
        found = picture_size(path)
        if found is None:
            return f"{path} is not a whole PNG or JPEG"
        if sizes and found not in sizes:
            allowed = " or ".join(f"{w}x{h}" for w, h in sizes)
            return f"{path} has {found[0]}x{found[1]} pixels instead of {allowed}"
    return None


def wrong_pictures(folder: Path, pattern: str, expected: int, sizes: tuple[tuple[int, int], ...] = ()) -> str | None:
    """None if exactly `expected` pictures match the pattern and have one of the sizes, else what is wrong."""
    paths = sorted(folder.glob(pattern))
    if len(paths) != expected:
        return f"{folder / pattern} matches {len(paths)} of {expected} pictures"
    return wrong_size(paths, sizes)


def unmatched(names: Iterable[str], partners: Iterable[str], what: str) -> str | None:
    """None if every name has a partner of the same name, else how many have none, and the first of them."""
    lost = sorted(set(names) - set(partners))
    return f"{len(lost)} {what} have no partner, the first: {lost[0]}" if lost else None
