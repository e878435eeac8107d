"""The data scripts against a local server that also misbehaves."""

import hashlib
import http.server
import io
import sys
import threading
import zipfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "data_scripts"))
import bsds500  # noqa: E402
import fetch  # noqa: E402
import gopro  # noqa: E402


def make_zip(files: dict[str, bytes], link: str | None = None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(name, content)
        if link:
            entry = zipfile.ZipInfo(link)
            entry.external_attr = 0o120777 << 16
            file.writestr(entry, "/etc/passwd")
    return buffer.getvalue()


WHOLE = make_zip({f"SET/{i}.txt": bytes([i]) * 5000 for i in range(20)})


class Server(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        behaviour = self.path.strip("/")
        self.server.seen.append((behaviour, self.headers.get("Range")))
        body, start = WHOLE, 0
        if behaviour == "missing":
            return self.send_error(404)
        if behaviour == "html":
            body = b"<html>quota exceeded</html>"
        range_header = self.headers.get("Range")
        if range_header and behaviour != "no-range":
            start = int(range_header.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", "text/html" if behaviour == "html" else "application/zip")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        body = body[start:]
        self.wfile.write(body[: len(body) // 2] if behaviour == "drops" and not start else body)


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as httpd:
        httpd.seen = []
        threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
        httpd.url = f"http://127.0.0.1:{httpd.server_address[1]}"
        yield httpd
        httpd.shutdown()


def archive(server, *behaviours: str, **changes) -> fetch.Archive:
    values = {"md5": hashlib.md5(WHOLE).hexdigest()} | changes
    return fetch.Archive("set.zip", tuple(f"{server.url}/{b}" for b in behaviours), "CC0", "nobody", **values)


def quiet(line: str) -> None:
    pass


def test_a_good_mirror(server, tmp_path):
    assert fetch.download(archive(server, "good"), tmp_path, quiet).read_bytes() == WHOLE
    fetch.download(archive(server, "good"), tmp_path, quiet)
    assert len(server.seen) == 1, "a file that is here is not fetched again"


@pytest.mark.parametrize("bad", ["missing", "html", "drops"])
def test_the_next_mirror_takes_over(server, tmp_path, bad):
    assert fetch.download(archive(server, bad, "good"), tmp_path, quiet).read_bytes() == WHOLE


def test_a_dropped_connection_is_resumed(server, tmp_path):
    with pytest.raises(fetch.FetchError, match="run the script again"):
        fetch.download(archive(server, "drops"), tmp_path, quiet)
    assert not (tmp_path / "set.zip").exists()
    assert fetch.download(archive(server, "drops"), tmp_path, quiet).read_bytes() == WHOLE
    assert server.seen[-1][1] == f"bytes={len(WHOLE) // 2}-"


def test_a_server_that_ignores_ranges(server, tmp_path):
    (tmp_path / "set.zip.part").write_bytes(WHOLE[:100])
    assert fetch.download(archive(server, "no-range"), tmp_path, quiet).read_bytes() == WHOLE


def test_a_wrong_checksum_leaves_nothing(server, tmp_path):
    with pytest.raises(fetch.FetchError, match="checksum"):
        fetch.download(archive(server, "good", md5="0" * 32), tmp_path, quiet)
    assert list(tmp_path.iterdir()) == []


def test_too_little_space_is_said_before_the_download(server, tmp_path):
    with pytest.raises(fetch.FetchError, match="are needed"):
        fetch.download(archive(server, "good", size=10**18), tmp_path, quiet)
    assert server.seen == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (make_zip({"../evil.txt": b"x"}), "leaves the folder"),
        (make_zip({"/evil.txt": b"x"}), "leaves the folder"),
        (make_zip({"SET/a": b"x"}, link="SET/link"), "holds a link"),
        (make_zip({"SET/bomb": b"0" * 5_000_000}), "would unpack"),
        (WHOLE[:-50], "not a whole zip"),
        (b"<html></html>", "not a whole zip"),
    ],
    ids=["parent", "absolute", "link", "bomb", "truncated", "html"],
)
def test_bad_archives_leave_the_folder_untouched(server, tmp_path, content, message):
    path, folder = tmp_path / "bad.zip", tmp_path / "inside" / "data"
    path.write_bytes(content)
    with pytest.raises(fetch.FetchError, match=message):
        fetch.unpack(path, folder, archive(server, "good", max_unpacked=1_000_000), quiet)
    assert not (tmp_path / "evil.txt").exists() and not (tmp_path / "inside" / "evil.txt").exists()
    assert not folder.exists() or list(folder.iterdir()) == []


def test_unpack_never_replaces(server, tmp_path):
    path = tmp_path / "set.zip"
    path.write_bytes(WHOLE)
    (tmp_path / "SET").mkdir()
    (tmp_path / "SET" / "mine.txt").write_text("keep")
    with pytest.raises(fetch.FetchError, match="exists"):
        fetch.unpack(path, tmp_path, archive(server, "good"), quiet)
    assert [p.name for p in (tmp_path / "SET").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("script", [gopro, bsds500])
def test_a_script_from_archive_to_complete(script, tmp_path, monkeypatch, capsys):
    """Miniature archives with the true names: complete, idempotent, and incomplete ones are named."""
    if script is gopro:
        monkeypatch.setattr(gopro, "PAIRS", {"train": 2, "test": 1})
        names = [f"GOPRO_Large/{s}/GOPR0372_07_00/{k}/{i:06d}.png" for s, n in gopro.PAIRS.items() for k in ("blur", "sharp") for i in range(n)]
        data = gopro.GOPRO
    else:
        monkeypatch.setattr(bsds500, "IMAGES", {"train": 2, "val": 1, "test": 1})
        names = [f"BSDS500-master/BSDS500/data/images/{s}/{i}.jpg" for s, n in bsds500.IMAGES.items() for i in range(n)]
        data = bsds500.BSDS500
    path = tmp_path / "by_hand.zip"
    arguments = ["--folder", str(tmp_path / "data"), "--from-archive", str(path)]
    path.write_bytes(make_zip({name: b"x" for name in names[:-1]}))
    assert fetch.main(data, script.missing, "", arguments) == 1
    assert "unpacked, but" in capsys.readouterr().err
    whole = [*arguments[:1], str(tmp_path / "whole"), *arguments[2:]]
    path.write_bytes(make_zip({name: b"x" for name in names}))
    assert fetch.main(data, script.missing, "", whole) == 0
    assert data.licence in capsys.readouterr().out
    assert fetch.main(data, script.missing, "", whole) == 0
    assert "nothing to do" in capsys.readouterr().out
