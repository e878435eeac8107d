"""A local file server that misbehaves on request, for the tests of the data scripts.

`server.files[name]` is served at /<behaviour>/<name>; `server.seen` lists (behaviour, Range header) of each request, and
`server.conditions` its If-Range header. The
behaviours are the methods of Handler that are named in no other list: see BEHAVIOURS at the end.
"""

import contextlib
import hashlib
import http.server
import threading
import urllib.parse

CONFIRM = """<!DOCTYPE html><html><title>Google Drive - Virus scan warning</title><body>Google Drive can't scan this file for
viruses. <form id="download-form" action="/confirmed/{name}" method="get"><input type="submit" value="Download anyway"/>
<input type="hidden" name="id" value="abc"><input type="hidden" name="confirm" value="t">
<input type="hidden" name="uuid" value="1-2&amp;3">
</form></body></html>"""


class Handler(http.server.BaseHTTPRequestHandler):
    """One request; the first part of the path chooses what happens."""

    def log_message(self, *args):
        """No noise in the tests' output."""

    def do_GET(self):
        path = urllib.parse.urlsplit(self.path)
        behaviour, _, name = path.path.strip("/").partition("/")
        self.server.seen.append((behaviour, self.headers.get("Range")))
        self.server.conditions.append(self.headers.get("If-Range"))
        self.content = self.server.files[name]
        self.name, self.query = name, dict(urllib.parse.parse_qsl(path.query))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            BEHAVIOURS[behaviour](self)

    def start(
        self, obey: bool = True, etag: str | None = "", change: int = 0, kind: str = "application/octet-stream"
    ) -> bytes:
        """Send the headers; returns what is to be sent. change: is added to the true Content-Length."""
        etag = f'"{hashlib.md5(self.content).hexdigest()}"' if etag == "" else etag
        range_, if_range = self.headers.get("Range"), self.headers.get("If-Range")
        first = int(range_.removeprefix("bytes=").rstrip("-")) if range_ and obey and if_range in (None, etag) else 0
        if first >= len(self.content) > 0:
            self.send_error(416)
            return b""
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(self.content) - 1}/{len(self.content) + change}")
        if etag:
            self.send_header("ETag", etag)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(self.content) - first + change))
        self.end_headers()
        return self.content[first:]

    def times(self) -> int:
        """How often this address was asked for, this time included."""
        return sum(behaviour == self.path.strip("/").partition("/")[0] for behaviour, _ in self.server.seen)

    def good(self):
        self.wfile.write(self.start())

    def no_etag(self):
        self.wfile.write(self.start(etag=None))

    def ignores_range(self):
        self.wfile.write(self.start(obey=False))

    def drops(self):
        """A third of the file at a time, whatever is asked for."""
        self.wfile.write(self.start()[: len(self.content) // 3 + 1])

    def drops_once(self):
        """Half the first time; the whole rest afterwards."""
        body = self.start()
        self.wfile.write(body[: len(body) // 2] if self.times() == 1 else body)

    def drops_and_ignores_range(self):
        self.wfile.write(self.start(obey=False)[: len(self.content) // 2])

    def waits(self):
        """Half the first time, and then nothing, with the connection open, until the test lets go."""
        body = self.start()
        self.wfile.write(body[: len(body) // 2] if self.times() == 1 else body)
        self.wfile.flush()
        if self.times() == 1:
            self.server.go_on.wait(20)

    def promises_more(self):
        self.wfile.write(self.start(change=1000))

    def promises_less(self):
        self.wfile.write(self.start(change=-len(self.content) // 20)[: -len(self.content) // 20])

    def no_length(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.content)

    def html(self):
        self.content = b"<html><body>Please log in</body></html>"
        self.wfile.write(self.start(obey=False, kind="text/html; charset=utf-8"))

    def hidden_html(self):
        """An error page that calls itself something else."""
        self.content = b"\n<!DOCTYPE html><html><body>Too busy</body></html>"
        self.wfile.write(self.start(obey=False))

    def quota(self):
        self.content = b"<html><title>Google Drive - Quota exceeded</title></html>"
        self.wfile.write(self.start(obey=False, kind="text/html"))

    def confirm(self):
        self.content = CONFIRM.format(name=self.name).encode()
        self.wfile.write(self.start(obey=False, kind="text/html"))

    def confirmed(self):
        if self.query != {"id": "abc", "confirm": "t", "uuid": "1-2&3"}:
            return self.send_error(400)
        return self.drops_once()

    def missing(self):
        self.send_error(404)

    def fails(self):
        self.send_error(500)

    def busy_once(self):
        return self.send_error(503) if self.times() == 1 else self.good()

    def changes(self):
        """Half of the file; when asked again, the file is another one, as its ETag says."""
        if self.times() == 1:
            self.wfile.write(self.start(etag='"old"')[: len(self.content) // 2])
        else:
            self.content = self.server.files["other " + self.name]
            self.wfile.write(self.start(etag='"new"'))

    def changes_silently(self):
        """The same from a server that obeys the range although If-Range forbids it."""
        if self.times() == 1:
            return self.changes()
        self.content = self.server.files["other " + self.name]
        del self.headers["If-Range"]
        return self.wfile.write(self.start(etag='"new"'))

    def hub(self):
        """A redirect that names the SHA-256 of the file, as Hugging Face does."""
        self.send_response(302)
        self.send_header("Location", f"/{'good' if self.query.get('right') else 'other'}/{self.name}")
        self.send_header("X-Linked-ETag", f'"{hashlib.sha256(self.content).hexdigest()}"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def other(self):
        self.content = self.server.files["other " + self.name]
        self.wfile.write(self.start())


BEHAVIOURS = {
    name: method
    for name, method in vars(Handler).items()
    if callable(method) and name not in ("log_message", "do_GET", "start", "times")
}


@contextlib.contextmanager
def serve(files: dict[str, bytes]):
    """The running server; .url is where it listens."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.files, server.seen, server.conditions, server.go_on = dict(files), [], [], threading.Event()
        server.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.go_on.set()
            server.shutdown()
            thread.join()
