"""Download one archive: mirrors in order, resumed where an earlier run stopped, checked before it gets its name.

gdown fetches the bytes, from Google Drive and from plain addresses: unlike the other libraries it goes on with what an
earlier run left. Hugging Face tells the SHA-256 of its files, which huggingface_hub reads.
"""

import hashlib
import re
import shutil
import sys
from pathlib import Path

from tqdm import tqdm
from unpack import Damaged, FetchError, archive_kind, files_below, refuse_page

from tinymsg.datasets.facts import Archive

HUB = re.compile(r"/datasets/[^/]+/[^/]+/resolve/")
RETRIES, TIMEOUT = 5, 60  # of a connection; seconds without a byte
TOLERANCE = 0.1  # published sizes are rounded, and GB may mean GiB


def fetch_archive(archive: Archive, folder: Path, any_checksum: bool = False) -> tuple[Path, str, str]:
    """(path, the mirror that it came from just now or "", SHA-256); the file gets its name when it is whole and right.

    Raises: FetchError if no mirror gives it. What was there before stays, and so does the part that has come.
    """
    target, work, failures = folder / archive.name, folder / f".download-{archive.name}", []
    if target.exists():
        print(f"{target} is here already")
        return target, "", checked(target, archive, any_checksum)
    for url in archive.mirrors:
        print(f"fetching {archive.name} from {url}")
        try:
            told = _told_by_hub(url)
            # A folder for each mirror and version: bytes of different files are never joined
            place = work / hashlib.sha256(f"{url} {told}".encode()).hexdigest()[:12]
            place.mkdir(parents=True, exist_ok=True)
            try:
                path = _transfer(url, archive, place)
                refuse_page(path)
                if not archive.plain:
                    archive_kind(path)
                sha256 = checked(path, archive, any_checksum, told)
            except Damaged:  # nothing to resume from
                shutil.rmtree(place)
                raise
            path.replace(target)
            shutil.rmtree(work)
            return target, url, sha256
        except FetchError as error:
            failures.append(f"{url}: {error}")
            print(f"this mirror failed: {error}")
    if not files_below(work):
        shutil.rmtree(work, ignore_errors=True)
    raise FetchError(
        f"no mirror worked: {'; '.join(failures)}. Run this again to go on, or fetch {archive.name} by hand, "
        f"from {archive.page}, and pass --from-archive FILE"
    )


def checked(path: Path, archive: Archive, any_checksum: bool = False, told: str | None = None) -> str:
    """SHA-256 of a file. any_checksum: only report a published checksum that is another; not that of a server (`told`).

    Raises: Damaged if a checksum is another.
    """
    found = {}
    for kind in ("sha256", "md5") if archive.md5 else ("sha256",):
        with open(path, "rb") as file:
            found[kind] = hashlib.file_digest(file, kind).hexdigest()
    for wanted, kind, tolerated in (
        (archive.md5, "md5", any_checksum),
        (archive.sha256, "sha256", any_checksum),
        (told, "sha256", False),
    ):
        if wanted and wanted != found[kind]:
            problem = f"{kind} of {path.name} is {found[kind]} instead of {wanted}: damaged, or another version"
            if not tolerated:
                raise Damaged(f"{problem} (--any-checksum takes another version)" if wanted != told else problem)
            print(f"{problem}; taken all the same, as you asked")
    return found["sha256"]


def _told_by_hub(url: str) -> str | None:
    """The SHA-256 that Hugging Face tells of a file; None elsewhere."""
    if not HUB.search(url):
        return None
    huggingface_hub = _library("huggingface_hub")
    try:
        tag = huggingface_hub.get_hf_file_metadata(url, token=False, timeout=TIMEOUT).etag or ""
    except Exception as error:  # of three libraries, without a common base
        raise FetchError(_reason(error)) from None
    return tag if re.fullmatch(r"[0-9a-f]{64}", tag) else None


def _transfer(url: str, archive: Archive, place: Path) -> Path:
    """The whole file, as the server sends it. Raises: FetchError; what has come stays for the next attempt."""
    gdown = _library("gdown")
    progress = _Progress(archive, place)
    anew = False
    while True:
        have = _bytes_below(place)
        try:
            output = str(place / archive.name)
            options = {"quiet": True, "use_cookies": False, "timeout": TIMEOUT, "retries": RETRIES}
            gdown.download(url, output, resume=True, progress=progress, **options)
            return Path(output)
        except (gdown.exceptions.DownloadError, _library("requests").RequestException) as error:
            if _bytes_below(place) > have:  # it goes on
                continue
            if not have or anew:
                raise FetchError(_reason(error)) from None
            # The server does not go on where the part ends, or has another file by now
            anew = True
            for path in files_below(place):
                path.unlink()
        finally:
            progress.close()


def _bytes_below(place: Path) -> int:
    return sum(path.stat().st_size for path in files_below(place))


class _Progress:
    """A bar; and the first look at what the server offers."""

    def __init__(self, archive: Archive, place: Path):
        self.archive, self.place = archive, place
        self.bar: tqdm | None = None

    def __call__(self, have: int, total: int | None) -> None:
        if self.bar is None:
            self._look(have, total)
            interval = 0.5 if sys.stdout.isatty() else 60  # seconds; a log gets a line now and then
            options = {"unit": "B", "unit_scale": True, "mininterval": interval, "file": sys.stdout}
            self.bar = tqdm(total=total, initial=have, desc=self.archive.name, **options)
        self.bar.update(have - self.bar.n)

    def _look(self, have: int, total: int | None) -> None:
        published = self.archive.size
        if total is not None and published and abs(total - published) > TOLERANCE * published:
            raise FetchError(f"the server offers {total:,} bytes where about {published:,} are published: another file")
        free = shutil.disk_usage(self.place).free
        if total is not None and free < total - have:
            raise FetchError(f"{total / 1e9:.1f} GB are needed for {self.archive.name}, {free / 1e9:.1f} GB are free")

    def close(self) -> None:
        """Leave the last state standing."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def _reason(said: Exception) -> str:
    """What a library says, in few words."""
    error = said.__cause__ or said  # gdown wraps what requests says
    response, kind = getattr(error, "response", None), type(error).__name__
    if response is not None:
        return f"the server answered {response.status_code}"
    if "Timeout" in kind:
        return f"the server sent nothing for {TIMEOUT} seconds"
    if "Connect" in kind:
        return "the server cannot be reached"
    if kind == "ChunkedEncodingError":
        return "the connection broke again and again"
    return " ".join(str(error).split()).rstrip(".") or kind


def _library(name: str):
    """A package that only downloads need."""
    try:
        return __import__(name)
    except ImportError:
        raise FetchError(f'{name} is not installed: python -m pip install -e ".[data]"') from None
