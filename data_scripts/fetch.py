"""What all data scripts share: download with mirrors and resume, verify, unpack safely. Standard library only."""

import argparse
import hashlib
import os
import shutil
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


class FetchError(Exception):
    """Why the data could not be had, in one sentence."""


@dataclass(frozen=True)
class Archive:
    """One downloadable file of a data set."""

    name: str  # file name it gets in the download folder
    mirrors: tuple[str, ...]  # tried in order
    licence: str
    citation: str
    size: int | None = None  # bytes, for the free-space check before the server has told
    md5: str | None = None  # where the publisher or a known project gives one
    unpacked: int = 0  # bytes after unpacking, roughly
    max_unpacked: int = 40 * 10**9  # refuse an archive that claims more: a zip bomb or the wrong file


def check_space(folder: Path, need: int) -> None:
    """Raise FetchError unless `folder`'s disk has `need` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < need:
        raise FetchError(f"{need / 1e9:.1f} GB are needed below {folder}, {free / 1e9:.1f} GB are free")


def download(archive: Archive, folder: Path, report: Callable[[str], None] = print) -> Path:
    """Fetch an archive, from where an earlier attempt stopped; the file gets its name when it is whole.

    Raises: FetchError if no mirror gives the whole, right file. What was there before stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target, partial = folder / archive.name, folder / (archive.name + ".part")
    if target.exists():
        verify(target, archive)
        report(f"{target} is here already")
        return target
    check_space(folder, max((archive.size or 0) - (partial.stat().st_size if partial.exists() else 0), 0))
    failures = []
    for url in archive.mirrors:
        try:
            _download_from(url, partial, report)
            verify(partial, archive)
        except (FetchError, OSError) as error:
            failures.append(f"{url}: {error}")
            report(f"this mirror failed: {failures[-1]}")
            continue
        partial.replace(target)
        return target
    raise FetchError("no mirror worked: " + "; ".join(failures) + f". Fetch it by hand and pass --from-archive FILE ({archive.name})")


def _download_from(url: str, partial: Path, report: Callable[[str], None]) -> None:
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing left to send: the partial file is whole, or not this file at all
            return
        raise FetchError(f"the server answered {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        raise FetchError(f"not reachable ({error.reason})") from None
    with response:
        if "text/html" in response.headers.get("Content-Type", ""):
            raise FetchError("the server sent a web page instead of the archive")
        resumed = response.status == 206
        have = have if resumed else 0  # a server that ignores the range sends everything again
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        if total is not None:
            check_space(partial.parent, total - have)
        with open(partial, "ab" if resumed else "wb") as file:
            while chunk := response.read(1 << 20):
                file.write(chunk)
                have += len(chunk)
                if have % (256 << 20) < len(chunk):
                    report(f"{have / 1e9:.2f} of {total / 1e9:.2f} GB" if total else f"{have / 1e9:.2f} GB")
    if total is not None and have < total:
        raise FetchError(f"the connection ended at {have} of {total} bytes; run the script again to go on")


def verify(path: Path, archive: Archive) -> None:
    """Compare size and checksum where they are known. A wrong file is removed, so that the next run starts clean."""
    if archive.md5 is None:
        return
    digest = hashlib.md5()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    if digest.hexdigest() != archive.md5:
        path.unlink()
        raise FetchError(f"checksum {digest.hexdigest()} instead of {archive.md5}: damaged or another version; removed")


def unpack(path: Path, folder: Path, archive: Archive, report: Callable[[str], None] = print) -> None:
    """Unpack a zip below `folder`: no path outside it, no links, no more bytes than it may have.

    Unpacks beside the target and renames each top folder at the end: an interruption leaves nothing half there.
    """
    try:
        with zipfile.ZipFile(path) as file:
            members = file.infolist()
            for member in members:
                name = PurePosixPath(member.filename.replace("\\", "/"))
                if name.is_absolute() or ".." in name.parts:
                    raise FetchError(f"{path.name} holds a path that leaves the folder: {member.filename}")
                if (member.external_attr >> 16) & 0o170000 == 0o120000:
                    raise FetchError(f"{path.name} holds a link: {member.filename}")
            total = sum(member.file_size for member in members)
            if total > archive.max_unpacked:
                raise FetchError(f"{path.name} would unpack to {total / 1e9:.0f} GB; at most {archive.max_unpacked / 1e9:.0f} GB are expected")
            folder.mkdir(parents=True, exist_ok=True)
            check_space(folder, total)
            staging = folder / f".unpacking-{os.getpid()}"
            try:
                report(f"unpacking {len(members)} files")
                for member in members:
                    file.extract(member, staging)
                for top in staging.iterdir():
                    if (folder / top.name).exists():
                        raise FetchError(f"{folder / top.name} exists; move it away first")
                    top.rename(folder / top.name)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    except (zipfile.BadZipFile, EOFError) as error:
        raise FetchError(f"{path.name} is not a whole zip archive ({error})") from None


def main(archive: Archive, done: Callable[[Path], str | None], description: str, arguments: list[str] | None = None) -> int:
    """Command line of a data script: download, verify, unpack; nothing to do when `done(folder)` says so.

    done: returns None if the unpacked data is complete, else what is missing.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--folder", type=Path, default=Path("data"), help="where the data goes (default: %(default)s)")
    parser.add_argument("--from-archive", type=Path, metavar="FILE", help="an archive that you downloaded by hand")
    args = parser.parse_args(arguments)
    try:
        if done(args.folder) is None:
            print(f"complete below {args.folder}; nothing to do")
            return 0
        print(f"Licence: {archive.licence}\nCite: {archive.citation}")
        if args.from_archive is not None and not args.from_archive.is_file():
            raise FetchError(f"{args.from_archive}: no such file")
        path = args.from_archive or download(archive, args.folder)
        unpack(path, args.folder, archive)
        missing = done(args.folder)
        if missing:
            raise FetchError(f"unpacked, but {missing}")
    except FetchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the next run goes on from here", file=sys.stderr)
        return 130
    print(f"complete below {args.folder}")
    return 0
