"""What all data scripts share: what is missing is fetched, checked, unpacked, verified and moved into place.

Exit codes: 0 complete, 1 failed (one sentence says why), 2 wrong usage, 130 interrupted (the next run goes on).
The sets, their archives and their checksums are in tinymsg/datasets/facts.toml.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

import filelock
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the library beside this folder, installed or not
from download import checked, fetch_archive
from unpack import Damaged, FetchError, files_below, merge, unpack_archive

from tinymsg.datasets.facts import ARCHIVES, SETS, Archive

DEPTHS = ("*", "*/*", "*/*/*", "*/*/*/*")  # how deep an archive may hold its content
CHOICES = {  # an option of some scripts: what it chooses among, and the sets that each choice fetches
    "reds": ("--only", {"all": ["reds", "reds_val300"], "val": ["reds"], "val-300": ["reds_val300"]}),
    "levin": ("--form", {"png": ["levin"], "mat": ["levin_mat"]}),
}


def command(script: str) -> NoReturn:
    """Run a data script. SIGTERM ends it as Ctrl-C does: partial downloads are kept, staging folders removed."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main(script))


def main(script: str, arguments: list[str] | None = None) -> int:
    """The command line of a data script; returns the exit code."""
    args = _parse(script, arguments)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True)  # progress is seen as it happens, also through a pipe or in a log
    try:
        _complete(_Job(script, args))
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


def _parse(script: str, arguments: list[str] | None) -> argparse.Namespace:
    about = "; ".join(_counted(name) for name, known in SETS.items() if known.script == script)
    parser = argparse.ArgumentParser(f"{script}.py", description=f"Fetch, check and unpack {about}.")
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
    if script in CHOICES:
        option, choices = CHOICES[script]
        parser.add_argument(option, dest="choice", choices=choices, default=next(iter(choices)), help="what to fetch")
    if script == "gopro":
        parser.add_argument(
            "--blur",
            choices=("blur", "blur_gamma"),
            help="which blurry pictures will be used; recorded in gopro.json beside the data (default: what is "
            "recorded there, else blur)",
        )
    if script == "realblur":
        parser.add_argument("--train", action="store_true", help="fetch the lists of the training pairs too")
        parser.add_argument("--lists", type=Path, nargs="+", default=[], metavar="FILE", help="lists fetched by hand")
    return parser.parse_args(arguments)


class _Job:
    """What was asked for, and the record of what was done: data/<script>.json, written whole or not at all."""

    def __init__(self, script: str, args: argparse.Namespace):
        self.script, self.args, self.record = script, args, args.folder / f"{script}.json"
        if script in CHOICES:
            self.sets = CHOICES[script][1][args.choice]
        else:
            self.sets = [name for name, known in SETS.items() if known.script == script]
        names = dict.fromkeys(name for one in self.sets for name in SETS[one].archives)
        archives = [ARCHIVES[name] for name in names if ARCHIVES[name].split is None or args.train]
        self.archives = sorted(archives, key=lambda archive: not archive.plain)  # lists are small: they come first
        # known: archive -> what its bytes were when its content had been verified
        self.known, self.choices = self._read()
        self.blur = getattr(args, "blur", None) or self.choices.get("blur", "blur")

    def _read(self) -> tuple[dict[str, dict], dict[str, str]]:
        if not self.record.exists():
            return {}, {}
        try:
            record = json.loads(self.record.read_text(encoding="utf-8"))
            return dict(record["archives"]), dict(record["choices"])
        except (ValueError, KeyError, TypeError):
            raise FetchError(f"{self.record} is not a record of this script; move it away") from None

    def save(self) -> None:
        """Write the record."""
        self.choices = {"blur": self.blur} if self.script == "gopro" else {}
        about = {key: [getattr(SETS[name], key) for name in self.sets] for key in ("title", "licence", "citation")}
        text = json.dumps(about | {"choices": self.choices, "archives": self.known}, indent=2, ensure_ascii=False)
        new = self.record.with_suffix(".new")
        new.write_text(text + "\n", encoding="utf-8")
        os.replace(new, self.record)

    def next_lines(self) -> list[str]:
        """What to type next, with the folder named where it is not the library's default."""
        root = "" if self.args.folder == Path("data") else f" --root {self.args.folder}"
        lines = SETS[self.sets[0]].next
        if lines is None:
            lines = (f"python -m tinymsg paper --sets {' '.join(self.sets)}{{root}} --out runs/paper",)
        return [line.format(folder=self.args.folder, root=root, blur=self.blur) for line in lines]


def _complete(job: _Job) -> None:
    """Do what main() does, with exceptions."""
    folder, args = job.args.folder, job.args
    needed = [archive for archive in job.archives if wrong(archive, folder / archive.into, job.blur)]
    for note in filter(None, (SETS[name].note for name in job.sets)):
        print(note)
    if job.script == "gopro":
        print(f"blurry pictures: {job.blur}, recorded in {job.record}; --blur chooses")
    if needed:
        for name in job.sets:
            print(f"{_counted(name)}\nLicence: {SETS[name].licence}\nCite: {SETS[name].citation}")
        by_hand = _match_by_hand([*args.from_archive, *getattr(args, "lists", [])], job.archives)
        _check_room(needed, by_hand, folder)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with filelock.FileLock(folder / f".{job.script}.lock", timeout=0):
                for archive in needed:
                    _bring(archive, by_hand.get(archive.name), job)
        except filelock.Timeout:
            raise FetchError(f"another run is fetching into {folder}; let it finish") from None
    _check_pairs(job)
    if job.script == "gopro" and job.choices.get("blur") != job.blur:
        job.save()
    print(f"complete below {folder}" + ("" if needed else "; nothing to do"))
    if lines := job.next_lines():
        print("Next:", *(f"  {line}" for line in lines), sep="\n")


def _counted(name: str) -> str:
    counts = ", ".join(f"{count} {split}" for split, count in SETS[name].counts.items())
    return f"{SETS[name].title} ({counts})"


def _check_pairs(job: _Job) -> None:
    """Raise FetchError unless every blurry picture that was published has its sharp one."""
    from tinymsg.datasets.layouts import DATASETS, what_is_missing

    for name in (name for name in job.sets if name in DATASETS):
        for split in DATASETS[name].counts:
            if split == "train" and job.script == "realblur" and not job.args.train:
                continue  # its list was not asked for
            if problem := what_is_missing(name, job.args.folder, split, job.blur):
                raise FetchError(f"{SETS[name].title}, {split}, is not what was published: {problem}")


def wrong(archive: Archive, folder: Path, blur: str = "blur") -> str | None:
    """None if the folder holds all that an archive should, else what is wrong first."""
    for pattern, published in archive.contents.items():
        pattern = pattern.replace("{blur}", blur)
        paths = [path for path in folder.glob(pattern) if not path.name.startswith(".")]
        found = len(paths)
        if archive.plain:
            found = sum(bool(line.strip()) for path in paths for line in path.read_bytes().splitlines())
        if found not in published:
            most = f" to {published[-1]}" if len(published) > 1 else ""
            return f"{folder / pattern} has {found} instead of {published[0]}{most}"
        if archive.plain or pattern.endswith(".mat"):
            continue
        for path in paths:
            try:
                with Image.open(path) as picture:  # reads its header only
                    size = picture.size
            except OSError:
                return f"{path} is not a picture that can be read"
            if archive.pixels and size not in archive.pixels:
                allowed = " or ".join(f"{w}x{h}" for w, h in archive.pixels)
                return f"{path} has {size[0]}x{size[1]} pixels instead of {allowed}"
    return None


def _bring(archive: Archive, file: Path | None, job: _Job) -> None:
    """One archive: from its file or a mirror into place."""
    folder, any_checksum = job.args.folder, job.args.any_checksum
    known = job.known.get(archive.name, {})
    if file is not None:
        path, source, sha256 = file, f"by hand: {file.name}", checked(file, archive, any_checksum)
    else:
        path, source, sha256 = fetch_archive(archive, folder, any_checksum)
    print(f"{path}: {path.stat().st_size:,} bytes, SHA-256 {sha256}")
    again = "" if file is not None else f"; delete {path} to have it fetched again"
    if known and known["sha256"] != sha256 and not any_checksum:
        raise FetchError(
            f"{path} is not the {archive.name} of before: {job.record} has SHA-256 {known['sha256']}, from "
            f"{known['from']} on {known['on']}; one of them is damaged, or the publisher changed it. "
            f"--any-checksum takes the new one{again}"
        )
    try:
        _into_place(archive, path, job, again)
    except Damaged as error:
        if file is not None or not source:
            raise FetchError(f"{error}; fetch it again") from None
        path.unlink()
        raise FetchError(f"{error}; removed, so that the next run fetches it again") from None
    source = source or known.get("from", "found in the data folder")
    about = {"sha256": sha256, "bytes": path.stat().st_size, "from": source, "on": time.strftime("%Y-%m-%d")}
    job.known[archive.name] = about
    job.save()
    if archive.plain and file is None:
        path.unlink()  # it was copied into its place
    elif file is None:
        print(f"{path} is no longer needed; delete it if space is short")


def _into_place(archive: Archive, path: Path, job: _Job, again: str) -> None:
    """Unpack to a folder beside the target, verify there, and rename: an interruption leaves nothing half there."""
    folder = job.args.folder
    staging = folder / f".unpacking-{archive.name}"
    shutil.rmtree(staging, ignore_errors=True)  # of a run that was killed
    try:
        if archive.plain:
            staging.mkdir()
            found = Path(shutil.copyfile(path, staging / archive.name)).parent
        else:
            print(f"unpacking {path.name}")
            unpack_archive(path, staging, 2 * archive.expected_unpacked + 10**9)
            # Whatever folders its content lies in
            folders = [staging, *(place for depth in DEPTHS for place in sorted(staging.glob(depth)) if place.is_dir())]
            patterns = [pattern.replace("{blur}", job.blur) for pattern in archive.contents]
            found = max(folders, key=lambda place: sum(len(list(place.glob(pattern))) for pattern in patterns))
        if problem := wrong(archive, found, job.blur):
            problem = problem.replace(f"{staging}/", "")
            raise FetchError(f"{path.name} is not what was published: {problem}; nothing was put below {folder}{again}")
        merge(found, folder / archive.into)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    if still := wrong(archive, folder / archive.into, job.blur):
        raise FetchError(f"{path.name} is in place, but {still}: move away what is not of it")


def _match_by_hand(files: list[Path], archives: Iterable[Archive]) -> dict[str, Path]:
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


def _check_room(needed: Iterable[Archive], by_hand: dict[str, Path], folder: Path) -> None:
    """Before anything is fetched: the rest of the downloads, and all that will be unpacked, must fit."""
    need = 0
    for archive in needed:
        parts = [*folder.glob(archive.name), *files_below(folder / f".download-{archive.name}")]
        have = sum(path.stat().st_size for path in parts)
        need += 0 if archive.name in by_hand else max((archive.size or 0) - have, 0)
        need += archive.expected_unpacked
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < need:
        raise FetchError(f"{need / 1e9:.1f} GB are needed below {folder}, {free / 1e9:.1f} GB are free")
