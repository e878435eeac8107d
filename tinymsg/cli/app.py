"""app: a page on this machine that deblurs one photograph at a time, by Python's own web server.

Nothing is fetched from elsewhere, nothing sent: the page is app.html beside this file. It answers on 127.0.0.1 alone,
and there only whom the printed address was given to, for it holds a secret.
"""

import argparse
import json
import os
import re
import secrets
import shutil
import signal
import tempfile
import threading
import webbrowser
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path, PureWindowsPath
from urllib.parse import parse_qsl, quote

from . import deblur
from .shared import at_least, common, pick_device, say

MAX_BYTES = 256_000_000  # of an upload
OPTIONS = ("weights", "quality", "steps", "samples")  # of deblur, which the page has
PATIENCE = 5  # seconds that a picture waits for another, whose work may just have been stopped, and ends with a tile
BUSY = "another picture is in work: wait for it, or stop it"
TEXT, LINES, FILE = "text/plain; charset=utf-8", "application/x-ndjson; charset=utf-8", "application/octet-stream"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; connect-src 'self'; img-src 'self' data:; "
    "style-src 'nonce-SECRET'; script-src 'nonce-SECRET'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def add(commands: argparse._SubParsersAction) -> None:
    sub = commands.add_parser(
        "app",
        help="open a page that deblurs a photograph: drop, compare, download",
        epilog="The page is for this machine alone; photographs do not leave it, and are deleted at the end (Ctrl-C).",
    )
    sub.add_argument("--port", type=at_least(0), default=0, metavar="N", help="of 127.0.0.1 (default: a free one)")
    sub.add_argument("--no-browser", action="store_true", help="only print the address")
    common(sub, "device")
    sub.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    pick_device(args.device)  # or one that cannot be used would be told at the first picture
    for name in {"SIGTERM", "SIGHUP"} & set(dir(signal)):  # as Ctrl-C: nothing stays behind
        if signal.getsignal(number := getattr(signal, name)) == signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)
    with (
        tempfile.TemporaryDirectory(prefix="tinymsg-", ignore_cleanup_errors=True) as folder,
        _Server(args.port, args.device, Path(folder)) as server,
        suppress(KeyboardInterrupt),
    ):
        try:
            say(f"tinymsg: {server.address} (Ctrl-C ends it)")
            if not args.no_browser:
                webbrowser.open(server.address)
            server.serve_forever()
        finally:
            server.ended = True
            server.one.acquire()  # a picture in work ends at its next tile
    return 0


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = os.name != "nt"  # two programs would share the port there

    def __init__(self, port: int, device: str, folder: Path):
        try:
            super().__init__(("127.0.0.1", port), _Request)
        except (OSError, OverflowError) as error:
            said = getattr(error, "strerror", None) or error
            raise ValueError(f"port {port} cannot be used ({said}); give another --port, or none") from None
        self.device, self.folder, self.secret = device, folder, secrets.token_urlsafe(16)
        self.address = f"http://127.0.0.1:{self.server_port}/{self.secret}/"
        self.one, self.ended = threading.Lock(), False  # held while a picture is in work
        self.files: dict[str, tuple[Path, dict[str, str]]] = {}  # by their addresses, with headers
        self.numbers = count()

    def clear(self) -> None:
        """Delete a picture and all that was made of it."""
        self.files = {}
        for folder in self.folder.iterdir():
            shutil.rmtree(folder, ignore_errors=True)


class _Request(BaseHTTPRequestHandler):
    """One request, and its connection ends (HTTP/1.0): an answer can take as long as the work."""

    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]
    timeout = 60  # seconds without a byte

    def handle(self) -> None:
        with suppress(ConnectionError, TimeoutError, FileNotFoundError):  # the browser went, or the file
            super().handle()

    def log_message(self, format: str, *args) -> None:
        pass

    def do_GET(self) -> None:
        wanted = self._wanted()
        if wanted == "":
            self._answer(200, "text/html; charset=utf-8", _page(self.server.secret))
        elif wanted is not None and (found := self.server.files.get(wanted)):
            path, headers = found
            with path.open("rb") as file:
                self._answer(200, FILE, None, headers | {"Content-Length": str(path.stat().st_size)})
                shutil.copyfileobj(file, self.wfile)
        elif wanted is not None:
            self._answer(404, TEXT, "nothing is at this address; go to the page's first")

    def do_POST(self) -> None:
        wanted, length = self._wanted(), self.headers.get("Content-Length", "")
        if wanted is None:
            return
        asked = dict(parse_qsl(self.path.partition("?")[2]))
        name = PureWindowsPath(asked.get("name", "")).name or "picture"  # its own, whatever path is before it
        if wanted != "deblur" or not length.isdecimal():
            self._answer(400, TEXT, "this is not what the page sends; use the page")
        elif int(length) > MAX_BYTES:
            limit = f"the limit of this page is {MAX_BYTES // 10**6}; take tinymsg deblur"
            self._refuse(413, f"{name}: {int(length) // 10**6} MB; {limit}")
        elif not self.server.one.acquire(timeout=PATIENCE):
            self._refuse(409, BUSY)
        else:
            try:
                self._deblur(name, {option: asked[option] for option in OPTIONS if option in asked})
            finally:
                self.server.one.release()

    def _wanted(self) -> str | None:
        """The address after the secret. None for a stranger, who is told so.

        A site may have its name lead here (DNS rebinding), or send a form from its own page: Host and Origin show it.
        """
        host, start = self.headers.get("Host", ""), f"/{self.server.secret}/"
        ours = re.fullmatch(r"(127\.0\.0\.1|localhost)(:\d+)?", host)
        if ours and self.headers.get("Origin", f"http://{host}") == f"http://{host}" and self.path.startswith(start):
            return self.path.removeprefix(start).partition("?")[0]
        self._answer(403, TEXT, "this page is for this machine alone; open the address that tinymsg app has printed")
        return None

    def _answer(self, status: int, kind: str, body: str | None, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (HEADERS | {"Content-Type": kind} | (headers or {})).items():
            self.send_header(name, value.replace("SECRET", self.server.secret))
        self.end_headers()
        if body is not None:
            self.wfile.write(body.encode())

    def _refuse(self, status: int, sentence: str) -> None:
        for _ in self._upload():  # a browser listens when it has sent all
            pass
        self._answer(status, TEXT, sentence)

    def _upload(self):
        """What is sent, in pieces. Raises: ConnectionError if it ends too soon."""
        left = int(self.headers["Content-Length"])
        while left:
            piece = self.rfile.read(min(left, 2**20))
            if not piece:
                raise ConnectionAbortedError
            left -= len(piece)
            yield piece

    def _tell(self, **event) -> None:
        """Send a line of the answer. Raises: ConnectionError if the page is gone or we end, and so does the work."""
        if self.server.ended:
            raise ConnectionAbortedError
        self.wfile.write(f"{json.dumps(event)}\n".encode())

    def _deblur(self, name: str, asked: dict[str, str]) -> None:
        """Receive a picture and work on it; what happens is told line by line."""
        from ..restoring.files import FORMS

        self.server.clear()
        folder, suffix = Path(tempfile.mkdtemp(dir=self.server.folder)), Path(name).suffix.lower()
        source = folder / f"picture{suffix if suffix in FORMS else ''}"  # nothing else of its name meets the disk
        try:
            with source.open("wb") as file:
                file.writelines(self._upload())
            self._answer(200, LINES, None)
            with deblur.told(source):
                self._work(name, source, asked)
        except BaseException as error:
            self.server.clear()
            if not isinstance(error, ValueError):
                raise
            self._tell(refused=str(error).replace(str(source), name))  # deblur's own sentence

    def _work(self, name: str, source: Path, asked: dict[str, str]) -> None:
        from ..restoring.files import check_target

        args = _arguments(asked, source, self.server.device)
        ((_, target),) = deblur.jobs_of([source], args.output)
        check_target(target, overwrite=False)
        restore = deblur.restorer(args)
        self._tell(before=self._show(_view(source, source.with_name("before.jpg"))))
        target, notes = deblur.deblur_one(
            restore, source, target, args.quality, lambda done, total: self._tell(share=done / total)
        )
        after = self._show(_view(target, source.with_name("after.jpg")))
        self._tell(after=after, result=self._show(target, f"{Path(name).stem}-deblurred{target.suffix}"), notes=notes)

    def _show(self, path: Path, name: str = "") -> str:
        """Serve a file from now on, as a download if it has a name; returns its address."""
        headers = {"Content-Type": "image/png" if path.suffix == ".png" else "image/jpeg"}
        if name:
            headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}"}
        address = str(next(self.server.numbers))
        self.server.files[address] = path, headers
        return address


class _Parser(argparse.ArgumentParser):
    """deblur's own, whose mistakes are told on the page."""

    def error(self, message: str):
        raise ValueError(message)


def _arguments(asked: dict[str, str], source: Path = Path("picture"), device: str = "auto") -> argparse.Namespace:
    """deblur's arguments. Raises: ValueError, one sentence, for what deblur refuses, and for weights not shipped."""
    from ..model import pretrained_names

    parser = _Parser(prog="tinymsg")
    deblur.add(parser.add_subparsers())
    chosen = [f"--{name}={value}" for name, value in asked.items() if value]
    out = f"{source.with_name('result')}{os.sep}"
    args = parser.parse_args(["deblur", str(source), "-o", out, f"--device={device}", *chosen])
    if args.weights not in pretrained_names():  # no other file of this machine
        raise ValueError(f"unknown weights {args.weights!r}; known: {', '.join(pretrained_names())}")
    return args


def _view(path: Path, target: Path) -> Path:
    """Write a picture as browsers show it: 8 bits, upright, over white, with its colour profile. Returns: where."""
    from ..restoring.files import Photo, eight_bits, open_photo, save_photo

    photo = open_photo(path)
    profile = {name: value for name, value in photo.metadata.items() if name == "icc_profile"}
    alpha = None if photo.alpha is None else eight_bits(photo.alpha)
    return save_photo(target, Photo(eight_bits(photo.pixels), alpha, profile))[0]


def _page(secret: str) -> str:
    from ..model import model_card, pretrained_names
    from ..restoring.files import FORMS

    usual, settings = _arguments({}), {}
    for name in [name for name in pretrained_names() if not name.startswith("trial")]:  # those are lesson 04.s
        card = model_card(name)
        of = {quality: deblur.quality_setting(card, quality) for quality in deblur.QUALITIES}
        settings[name] = {quality: (setting.steps, setting.samples) for quality, setting in of.items()}
    choices = {"settings": settings, "weights": usual.weights, "quality": usual.quality, "busy": BUSY}
    text = Path(__file__).with_name("app.html").read_text("utf-8")
    for mark, value in {"SECRET": secret, "CHOICES": json.dumps(choices), "SUFFIXES": ",".join(FORMS)}.items():
        text = text.replace(mark, value)
    return text
