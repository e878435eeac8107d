"""A local file server that misbehaves on request, for the tests of the data scripts.

`server.files[name]` is served at /<behaviour>/<name>; `server.seen` lists (behaviour, Range header) of each GET. The
behaviours are the methods of Handler in BEHAVIOURS, at the end. Behind /hub/datasets/a/b/resolve/main/<name>, and the
same with /liar/, it answers as Hugging Face does.
"""

import contextlib
import hashlib
import http.server
import threading


class Handler(http.server.BaseHTTPRequestHandler):
    """One request; the first part of the path chooses what happens."""

    def log_message(self, *args):
        """No noise in the tests' output."""

    def do_GET(self):
        self.behaviour, _, rest = self.path.strip("/").partition("/")
        self.content = self.server.files[rest.rpartition("/")[2]]
        if self.command == "GET":
            self.server.seen.append((self.behaviour, self.headers.get("Range")))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            BEHAVIOURS[self.behaviour](self)

    do_HEAD = do_GET

    def start(self, obey: bool = True, more: int = 0, told: bytes | None = None) -> bytes:
        """Send the headers; returns what is to be sent. more: than the true length; told: its SHA-256 is announced."""
        range_ = self.headers.get("Range") if obey else None
        first = int(range_.removeprefix("bytes=").rstrip("-")) if range_ else 0
        if first >= len(self.content) > 0:
            self.send_error(416)
            return b""
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(self.content) - 1}/{len(self.content) + more}")
        tag = hashlib.sha256(self.content if told is None else told).hexdigest()
        self.send_header("ETag", f'"{tag}"')
        if told is not None:
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("X-Linked-ETag", f'"{tag}"')
        self.send_header("Content-Length", str(len(self.content) - first + more))
        self.end_headers()
        return self.content[first:] if self.command == "GET" else b""

    def good(self):
        self.wfile.write(self.start())

    def drops(self):
        """A third of the file at a time, whatever is asked for."""
        self.wfile.write(self.start()[: len(self.content) // 3 + 1])

    def drops_and_ignores_range(self):
        self.wfile.write(self.start(obey=False)[: len(self.content) // 2])

    def drops_once_and_ignores_range(self):
        body = self.start(obey=False)
        self.wfile.write(body if self.headers.get("Range") or len(self.server.seen) > 2 else body[: len(body) // 2])

    def waits(self):
        """Half of what is asked for, and then nothing, with the connection open, until the test lets go."""
        body = self.start()
        free = self.server.go_on.is_set()
        self.wfile.write(body if free else body[: len(body) // 2])
        self.wfile.flush()
        self.server.go_on.wait(20)

    def promises_more(self):
        self.wfile.write(self.start(more=1000))

    def html(self):
        self.content = b"<html><body>Please log in</body></html>"
        self.wfile.write(self.start(obey=False))

    def missing(self):
        self.send_error(404)

    def no_repository(self):
        """As Hugging Face says it."""
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()

    def fails(self):
        self.send_error(500)

    def hub(self):
        self.wfile.write(self.start(told=self.content))

    def liar(self):
        """Announces another SHA-256 than that of what it sends."""
        self.wfile.write(self.start(told=b"something else"))


BEHAVIOURS = {
    name: method
    for name, method in vars(Handler).items()
    if callable(method) and name not in ("log_message", "do_GET", "do_HEAD", "start")
}


@contextlib.contextmanager
def serve(files: dict[str, bytes]):
    """The running server; .url is where it listens."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.files, server.seen, server.go_on = dict(files), [], threading.Event()
        server.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.go_on.set()
            server.shutdown()
            thread.join()
