"""The command line that all data scripts share: what is missing is fetched, checked, unpacked, verified and moved into place.

Exit codes: 0 complete, 1 failed (one sentence says why), 2 wrong usage, 130 interrupted (the next run goes on from there).
Standard library only. archive.py says what a data set is; download.py, unpack.py and pictures.py do the work.
"""

import argparse
import contextlib
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from archive import Archive, Damaged, DataSet, FetchError, Record, check_known, check_space, readable
from download import Fetched, fetch_archive
from unpack import arrange, merge, unpack_archive

try:
    import fcntl
except ImportError:  # Windows: two runs at once are then the user's to avoid
    fcntl = None


def command_line(description: str) -> argparse.ArgumentParser:
    """The options of every data script; a script adds its own."""
    parser = argparse.ArgumentParser(description=description.split("\n\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("data"), help="where the data goes (default: %(default)s)")
    parser.add_argument(
        "--from-archive",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="archives that you fetched by hand; only what is not among them is downloaded",
    )
    parser.add_argument(
        "--any-checksum",
        action="store_true",
        help="go on though a checksum is not the published or recorded one; counts and sizes are still verified",
    )
    return parser


def run(describe: Callable[[], DataSet], args: argparse.Namespace) -> int:
    """Bring the data set that `describe` returns below args.folder; returns the exit code."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True)  # progress is seen as it happens, also through a pipe or in a log
    try:
        with _terminable():
            _complete(describe(), args)
    except FetchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename or args.folder}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the next run goes on from here", file=sys.stderr)
        return 130
    return 0


def _complete(data: DataSet, args: argparse.Namespace) -> None:
    """Do what run() does, with exceptions."""
    record = Record(args.folder, data.key)
    needed = [archive for archive in data.archives if archive.missing(args.folder) is not None]
    for note in data.notes:
        print(note)
    if needed:
        print(f"{data.title}\nLicence: {data.licence}\nCite: {data.citation}")
        by_hand = _match_by_hand(args.from_archive, data.archives)
        _check_room(needed, by_hand, args.folder)
        args.folder.mkdir(parents=True, exist_ok=True)
        for name in by_hand.keys() - {archive.name for archive in needed}:
            print(f"{by_hand[name]} is not needed: what it holds is there already")
        with _alone(args.folder, data.key):
            for archive in needed:
                _bring(archive, by_hand.get(archive.name), data, record, args)
    if record.choices != data.choices:
        changed = [
            f"{name} {record.choices[name]} -> {value}"
            for name, value in data.choices.items()
            if record.choices.get(name, value) != value
        ]
        made = ", ".join(f"{name} = {value}" for name, value in data.choices.items())
        print(f"choice changed: {', '.join(changed)}" if changed else f"recorded in {record.path}: {made}")
        record.choices = dict(data.choices)
        record.save(data)
    print(f"complete below {args.folder}" + ("" if needed else "; nothing to do"))
    print("Next:", *(f"  {line}" for line in next_lines(data, args.folder)), sep="\n")


def next_lines(data: DataSet, folder: Path) -> list[str]:
    """What to type next, with the folder named where it is not the library's default."""
    root = "" if folder == Path("data") else f" --root {folder}"
    return [command.format(folder=folder, root=root) for command in data.next_commands]


def _bring(archive: Archive, file: Path | None, data: DataSet, record: Record, args: argparse.Namespace) -> None:
    """One archive: from its file or a mirror into place."""
    if file is not None:
        fetched = Fetched(file, "", check_known(file, archive, print, args.any_checksum))
    else:
        fetched = fetch_archive(archive, args.folder, print, args.any_checksum)
    size = fetched.path.stat().st_size
    print(f"{fetched.path}: {readable(size)}, SHA-256 {fetched.sha256}")
    known = record.archives.get(archive.name)
    again = "" if file is not None else f"; delete {fetched.path} to have it fetched again"
    if known and known["sha256"] != fetched.sha256 and not args.any_checksum:
        raise FetchError(
            f"{fetched.path} is not the {archive.name} of before: {record.path} has SHA-256 {known['sha256']}, "
            f"from {known['from']} on {known['on']}; one of them is damaged, or the publisher changed it. "
            f"--any-checksum takes the new one{again}"
        )
    try:
        _into_place(archive, fetched.path, args.folder, again)
    except Damaged as error:
        if not fetched.source:
            raise FetchError(f"{error}; fetch it again") from None
        fetched.path.unlink()
        raise FetchError(f"{error}; removed, so that the next run fetches it again") from None
    source = fetched.source or (known or {}).get("from", "") if file is None else f"by hand: {file.name}"
    record.remember(archive.name, fetched.sha256, size, source or "found in the data folder")
    record.save(data)
    if archive.plain and fetched.source:
        fetched.path.unlink()  # it was copied into its place
    elif file is None:
        print(f"{fetched.path} is no longer needed; delete it if space is short")


def _into_place(archive: Archive, path: Path, folder: Path, again: str) -> None:
    """Unpack to a folder beside the target, verify there, and rename: an interruption leaves nothing half there."""
    staging = folder / f".unpacking-{archive.name}"
    shutil.rmtree(staging, ignore_errors=True)  # of a run that was killed
    try:
        if archive.plain:
            (staging / "verified" / archive.into).mkdir(parents=True)
            shutil.copyfile(path, staging / "verified" / archive.into / archive.name)
        else:
            print(f"unpacking {path.name}")
            unpack_archive(archive, path, staging / "raw")
            arrange(staging / "raw", staging / "verified", archive.into)
        problem = archive.missing(staging / "verified")
        if problem:
            problem = problem.replace(f"{staging / 'verified'}/", "")
            raise FetchError(f"{path.name} is not what was published: {problem}; nothing was put below {folder}{again}")
        merge(staging / "verified", folder, archive.into)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    still = archive.missing(folder)
    if still:
        raise FetchError(
            f"{path.name} is in place, but {still}: there is more below {folder / archive.into} than the archive holds"
        )


def _match_by_hand(files: Sequence[Path], archives: Sequence[Archive]) -> dict[str, Path]:
    """Which file is which archive: by name, and the only one left over is the only archive left over."""
    for file in files:
        if not file.is_file():
            raise FetchError(f"{file}: no such file")
    names = {archive.name.lower(): archive.name for archive in archives}
    matched = {names[file.name.lower()]: file for file in files if file.name.lower() in names}
    rest = [file for file in files if file not in matched.values()]
    left = [archive.name for archive in archives if archive.name not in matched and not archive.plain]
    if rest and (len(rest) > 1 or len(left) != 1):
        raise FetchError(f"which archive is {rest[0].name}? Name it like one of {', '.join(names.values())}")
    return matched | dict(zip(left, rest, strict=False))


def _check_room(needed: Sequence[Archive], by_hand: dict[str, Path], folder: Path) -> None:
    """Before anything is fetched: the rest of the downloads, and all that will be unpacked, must fit."""
    need = 0
    for archive in needed:
        parts = [folder / archive.name, folder / f"{archive.name}.part"]
        have = sum(part.stat().st_size for part in parts if part.exists())
        need += 0 if archive.name in by_hand else max((archive.size or 0) - have, 0)
        need += archive.expected_unpacked
    check_space(folder, need)


@contextlib.contextmanager
def _alone(folder: Path, key: str) -> Iterator[None]:
    """Two runs would write into the same files: the second one says so and ends."""
    path = folder / f".{key}.lock"
    with open(path, "w") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise FetchError(f"another run is fetching into {folder}; let it finish") from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does: partial downloads are kept, staging folders removed."""

    def stop(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
