"""Download one archive: mirrors in order, resume, retries, Google Drive and Dropbox. Standard library only."""

import errno
import html.parser
import http.client
import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from archive import Archive, Damaged, FetchError, Progress, check_known, check_space, readable, write_whole
from unpack import archive_kind

WAITS = (
    1,
    2,
    4,
    8,
    16,
)  # seconds before each retry of a connection that broke; a retry that got something starts them again
TIMEOUT = 60  # seconds without a byte
TOLERANCE = 0.1  # published sizes are rounded, and GB may mean GiB
PAGE_STARTS = (b"<!doctype html", b"<html", b"<head", b"<?xml")


class Broken(Exception):
    """The connection broke, or the server is busy: trying again may help."""


class Anew(Broken):
    """What has come does not go with what the server has: it was removed, and the download starts anew."""


@dataclass
class State:
    """Where the partial file comes from; kept beside it, so that bytes of different files are never joined."""

    url: str = ""
    total: int | None = None
    validator: str | None = None  # ETag or Last-Modified, for If-Range
    sha256: str | None = None  # what the server says of the whole file (Hugging Face does)


@dataclass(frozen=True)
class Fetched:
    """An archive on the disk."""

    path: Path
    source: str  # the mirror that it came from just now, "" if it was here already
    sha256: str


@dataclass(frozen=True)
class Offer:
    """What a server answers to the request for a file."""

    response: http.client.HTTPResponse
    state: State
    start: int  # the first byte that it sends


def fetch_archive(archive: Archive, folder: Path, report: Callable[[str], None], any_checksum: bool = False) -> Fetched:
    """Fetch an archive, from where an earlier attempt stopped; the file gets its name when it is whole and right.

    Raises: FetchError if no mirror gives it. What was there before stays, and so does the part that has come.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target, partial = folder / archive.name, folder / (archive.name + ".part")
    if target.exists():
        report(f"{target} is here already")
        return Fetched(target, "", check_known(target, archive, report, any_checksum))
    begun = replace(archive, md5=None, sha256=None) if any_checksum else archive  # no checksum would tell a splice then
    failures = []
    for url in _resumable_first(archive.mirrors, partial):
        report(f"fetching {archive.name} from {url}")
        try:
            _fetch_whole(url, begun, partial, report)
            if not archive.plain:
                archive_kind(partial)
            sha256 = check_known(partial, archive, report, any_checksum, _read_state(partial).sha256)
            partial.replace(target)
            _state_path(partial).unlink(missing_ok=True)
            return Fetched(target, url, sha256)
        except Damaged as error:  # nothing to resume from
            _discard(partial)
            failures.append(f"{url}: {error}; removed")
        except FetchError as error:
            failures.append(f"{url}: {error}")
        report(f"this mirror failed: {failures[-1]}")
    by_hand = f", from {' or '.join(archive.pages)}" if archive.pages else ""
    raise FetchError(
        f"no mirror worked: {'; '.join(failures)}. Run this again to go on, or fetch {archive.name} by hand"
        f"{by_hand} and pass --from-archive FILE"
    )


def direct_url(url: str) -> str:
    """The address that gives the file itself, for links that people share."""
    parts = urllib.parse.urlsplit(url)
    host = parts.hostname or ""
    if host == "drive.google.com" and "/folders/" in parts.path:
        raise FetchError(
            "Google Drive gives no file for a folder's address: open it in a browser and fetch the file by hand"
        )
    if host == "drive.google.com" and (found := re.match(r"/file/d/([^/]+)", parts.path)):
        return f"https://drive.google.com/uc?export=download&id={found[1]}"
    if host == "dropbox.com" or host.endswith(".dropbox.com"):
        query = [(key, value) for key, value in urllib.parse.parse_qsl(parts.query) if key != "dl"]
        return urllib.parse.urlunsplit(parts._replace(query=urllib.parse.urlencode([*query, ("dl", "1")])))
    return url


def _fetch_whole(url: str, archive: Archive, partial: Path, report: Callable[[str], None]) -> None:
    """Connect again and again until the partial file is whole, or nothing more comes."""
    failed = anew = 0
    while True:
        before = _have(partial)
        try:
            return _fetch_more(url, archive, partial, report)
        except (Broken, OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise FetchError(f"the disk is full at {readable(_have(partial))} of {archive.name}") from None
            problem = str(error) or type(error).__name__
            anew += isinstance(error, Anew)
            failed = 0 if _have(partial) > before else failed + 1
            # A server that never gave a byte gets two chances, and so does one whose files do not go together
            if failed > len(WAITS) or (failed > 1 and not _have(partial)) or anew > 1:
                raise FetchError(problem) from None
            wait = WAITS[max(failed - 1, 0)]
            report(f"{problem}; trying again in {wait} s")
            time.sleep(wait)


def _fetch_more(url: str, archive: Archive, partial: Path, report: Callable[[str], None]) -> None:
    """One connection: from the end of the partial file to the end of what the server sends."""
    offer = _ask(url, archive, partial)
    if offer is None:  # nothing left to send
        return
    with offer.response as response:
        total = offer.state.total
        first = response.read(512)
        if not offer.start and first.lstrip()[:20].lower().startswith(PAGE_STARTS):
            raise FetchError("the server sent a web page instead of the archive")
        if total is not None:
            check_space(partial.parent, total - offer.start)
        if not offer.start:
            _discard(partial)
        write_whole(_state_path(partial), json.dumps(asdict(offer.state)))
        progress = Progress(archive.name, total, report, offer.start)
        try:
            with open(partial, "ab") as file:
                chunk = first
                while chunk:
                    file.write(chunk)
                    progress.add(len(chunk))
                    chunk = response.read1(1 << 18)
        finally:
            progress.end()
    if total is not None and _have(partial) < total:
        raise Broken(f"the connection ended at {_have(partial)} of {total} bytes")


def _ask(url: str, archive: Archive, partial: Path) -> Offer | None:
    """Send the request, for the rest of the file where that is safe. None if there is nothing left to send."""
    old, have = _read_state(partial), _have(partial)
    if have and old.total == have and old.url == url:
        return None
    # The same mirror goes on where it was. Another one may only where a checksum will find out if the bytes do not join.
    resume = have > 0 and (old.url == url or bool(archive.md5 or archive.sha256))
    headers = {"User-Agent": "tinymsg-data-scripts/1", "Accept-Encoding": "identity"}
    if resume:
        headers["Range"] = f"bytes={have}-"
        if old.url == url and old.validator and not old.validator.startswith("W/"):
            headers["If-Range"] = old.validator
    response, told = _open(direct_url(url), headers)
    if response is None:  # 416: the file ends before the range begins, so that the partial file belongs to another one
        _discard(partial)
        raise Anew("the server has less than was begun or promised; starting anew")
    new = State(url, None, response.headers.get("ETag") or response.headers.get("Last-Modified"), told)
    start, length = 0, response.headers.get("Content-Length")
    if response.status == 206:
        range_ = re.match(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        start = int(range_[1]) if range_ else -1
        new.total = int(range_[2]) if range_ and range_[2] != "*" else None
        changed = old.url == url and old.validator and new.validator and old.validator != new.validator
        if start != have or changed or (old.total and new.total and old.total != new.total):
            response.close()
            _discard(partial)
            raise Anew("the file on the server is not the one that was begun; starting anew")
    elif length is not None:
        new.total = int(length)
    new.sha256 = told or (old.sha256 if start else None)
    if archive.size and new.total is not None and abs(new.total - archive.size) > TOLERANCE * archive.size:
        response.close()
        raise FetchError(
            f"the server offers {readable(new.total)} where about {readable(archive.size)} are published: another file"
        )
    return Offer(response, new, start)


def _open(
    url: str, headers: dict[str, str], confirmed: bool = False
) -> tuple[http.client.HTTPResponse | None, str | None]:
    """(response, SHA-256 that the server tells or None); the response is None for a range past the end."""
    redirects = _Redirects()
    opener = urllib.request.build_opener(redirects)
    try:
        response = opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:
            return None, None
        problem = f"the server answered {error.code} {error.reason}"
        raise (Broken if error.code in (408, 429) or error.code >= 500 else FetchError)(problem) from None
    except urllib.error.URLError as error:
        raise Broken(f"not reachable ({error.reason})") from None
    if "text/html" not in response.headers.get("Content-Type", ""):
        return response, redirects.sha256
    with response:
        page = response.read(1 << 20).decode("utf-8", "replace")
    onward = None if confirmed else confirmation(page, response.url)
    if onward is None:
        reason = " (its quota for this file is used up; try tomorrow)" if "quota" in page.lower() else ""
        raise FetchError(f"the server sent a web page instead of the archive{reason}")
    return _open(onward, headers, confirmed=True)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, and keeps the SHA-256 that Hugging Face names on the way to its store (X-Linked-ETag)."""

    sha256 = None

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        tag = headers.get("X-Linked-ETag", "").strip('"')
        if re.fullmatch(r"[0-9a-f]{64}", tag):
            self.sha256 = tag
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Form(html.parser.HTMLParser):
    """The address and hidden fields of the page on which Google Drive asks to confirm a big download."""

    def __init__(self):
        super().__init__()
        self.action, self.fields, self.inside = None, {}, False

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag == "form" and values.get("id") == "download-form":
            self.action, self.inside = values.get("action"), True
        elif tag == "input" and self.inside and values.get("name"):
            self.fields[values["name"]] = values.get("value") or ""

    def handle_endtag(self, tag):
        if tag == "form":
            self.inside = False


def confirmation(page: str, url: str) -> str | None:
    """The address behind Google Drive's "too large to scan for viruses" page; None if the page is something else."""
    form = _Form()
    form.feed(page)
    if not form.action:
        return None
    onward = urllib.parse.urljoin(url, form.action)
    here, there = urllib.parse.urlsplit(url), urllib.parse.urlsplit(onward)
    if there.scheme != "https" and there[:2] != here[:2]:
        return None
    return f"{onward}{'&' if there.query else '?'}{urllib.parse.urlencode(form.fields)}"


def _resumable_first(mirrors: tuple[str, ...], partial: Path) -> list[str]:
    begun = _read_state(partial).url if _have(partial) else ""
    return sorted(mirrors, key=lambda url: url != begun)


def _have(partial: Path) -> int:
    return partial.stat().st_size if partial.exists() else 0


def _state_path(partial: Path) -> Path:
    return partial.with_name(partial.name + ".json")


def _read_state(partial: Path) -> State:
    try:
        return State(**json.loads(_state_path(partial).read_text()))
    except (OSError, ValueError, TypeError):
        return State()


def _discard(partial: Path) -> None:
    partial.unlink(missing_ok=True)
    _state_path(partial).unlink(missing_ok=True)
