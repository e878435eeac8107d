"""The page of `tinymsg app`: for whom it is, what it refuses, what comes back; and in a real browser."""

import http.client
import io
import json
import os
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest
from PIL import Image
from test_browser import BROWSER, new_page, until

from tinymsg.cli import app, deblur, main

SVG = b'<svg xmlns="http://www.w3.org/2000/svg" onload="document.title=1"><script>document.title = 1</script></svg>'


def bomb() -> bytes:
    """A PNG of 100 million pixels in 55 kB: 1 bit each, all black."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", 10_000, 10_000, 1, 0, 0, 0, 0))]
    parts += [(b"IDAT", zlib.compress(bytes(1251) * 10_000, 1)), (b"IEND", b"")]
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def picture(form: str = "JPEG", side: int = 40, **options) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((side + 8, side)).convert("RGB").save(file, form, **options)
    return file.getvalue()


HOSTILE = {"notes.png": b"These are no pixels.\n", "bomb.png": bomb(), "drawing.svg": SVG, "drawing.png": SVG}


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "server"
    folder.mkdir()
    with app._Server(0, "cpu", folder) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def ask(server):
    """ask(method, address after the secret, body, headers) -> (status, answer, headers)."""

    def asking(method="GET", address="", body=None, secret=server.secret, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
        connection.request(method, f"/{secret}/{address}", body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read(), dict(answer.getheaders())

    return asking


@pytest.fixture
def upload(ask):
    """upload(name, bytes, options) -> what the page is told last; the answer's text where it is no 200."""

    def uploading(name, data, **options):
        status, answer, _ = ask("POST", f"deblur?{urlencode({'name': name, **options})}", data)
        return json.loads(answer.splitlines()[-1]) if status == 200 else answer.decode()

    return uploading


# --- for whom it is -----------------------------------------------------------------------------------------


def test_the_page_is_for_who_was_given_its_address(server, ask):
    home = f"127.0.0.1:{server.server_port}"
    assert ask()[0] == ask(Host="localhost:1")[0] == ask(Origin=f"http://{home}")[0] == 200
    for strange in ({"Host": "evil.example"}, {"Host": "127.0.0.1.evil.example"}, {"Origin": "http://evil.example"}):
        for method in ("GET", "POST"):
            assert ask(method, "deblur" if method == "POST" else "", **strange)[0] == 403
    assert ask(Origin="null")[0] == ask(secret="x")[0] == ask(secret=server.secret[:-1])[0] == 403
    assert server.server_address[0] == "127.0.0.1"


def test_no_file_but_the_pages_own_is_served(server, ask):
    (server.folder / "other.txt").write_text("secret")
    for address in ("other.txt", "../other.txt", "%2e%2e/other.txt", str(server.folder / "other.txt"), "/etc/passwd"):
        status, answer, _ = ask(address=quote(address))
        assert status == 404 and b"secret" not in answer


def test_the_page_loads_nothing_and_may_run_nothing_else(ask):
    _, page, headers = ask()
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; connect-src 'self'")
    assert b"//" not in page.replace(b"http://www.w3.org", b"").split(b"<script nonce")[0]
    assert not {word for word in (b"SECRET", b"CHOICES", b"SUFFIXES") if word in page}


# --- what it refuses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, data",
    [*HOSTILE.items(), ("cut.jpg", picture()[:300]), ("empty.png", b""), ("film.gif", None), ("../up.png", b"no")],
)
def test_what_deblur_refuses_is_refused_in_its_words(name, data, upload, server, tmp_path, capsys):
    if data is None:
        data = picture("GIF", save_all=True, append_images=[Image.new("RGB", (48, 40), "red")])
    name = Path(name).name
    path = tmp_path / name
    path.write_bytes(data)
    assert main(["deblur", str(path), "-o", f"{tmp_path}/out/", "--device", "cpu"]) == 1
    sentence = capsys.readouterr().err.strip().removeprefix("failed: ").replace(str(path), name)
    assert upload(f"C:\\elsewhere\\{name}", data) == {"refused": sentence}
    assert list(server.folder.iterdir()) == [] and server.files == {}


@pytest.mark.parametrize(
    "options, words",
    [
        ({"weights": __file__}, "unknown weights"),
        ({"weights": "hf://owner/name"}, "unknown weights"),
        ({"quality": "perfect"}, "argument --quality: invalid choice"),
        ({"steps": "0"}, "argument --steps: must be at least 1"),
        ({"samples": "many"}, "argument --samples: invalid"),
    ],
)
def test_options_that_deblur_does_not_know_are_refused(options, words, upload):
    assert upload("a.png", picture("PNG"), **options)["refused"].startswith(words)


def test_one_picture_at_a_time(server, upload, monkeypatch):
    monkeypatch.setattr(app, "PATIENCE", 0.1)
    with server.one:
        assert upload("second.png", picture("PNG")) == app.BUSY
    assert "refused" in upload("notes.png", b"no")  # the next one has its turn


def test_a_file_over_the_limit_is_not_kept(server, upload, monkeypatch):
    monkeypatch.setattr(app, "MAX_BYTES", 2_000_000)
    assert upload("film.mov", bytes(3_000_000)).startswith("film.mov: 3 MB; the limit of this page is 2")
    assert list(server.folder.iterdir()) == []


def test_a_port_that_is_taken_is_said(server):
    for port in (server.server_port, 99_999):
        with pytest.raises(ValueError, match=f"port {port} cannot be used .*; give another --port"):
            app._Server(port, "cpu", server.folder)


# --- what comes back ----------------------------------------------------------------------------------------


@pytest.fixture
def any_restorer(monkeypatch):
    """any_restorer(work) -> deblur's place is taken: work(advance), and the picture stays as it is."""

    def put(work):
        from tinymsg.restoring.files import network_input

        def restore(source, photo, quality, advance):
            work(advance)
            return network_input(photo)

        monkeypatch.setattr(deblur, "restorer", lambda args: restore)

    return put


def test_the_download_is_what_deblur_writes(server, ask, tmp_path):
    exif = Image.Exif()
    exif[0x010F] = "A camera"
    data = picture(exif=exif, quality=95)
    (tmp_path / "in.jpg").write_bytes(data)
    line = ["deblur", f"{tmp_path}/in.jpg", "-o", f"{tmp_path}/out.jpg", "--device", "cpu", "--steps", "2"]
    assert main([*line, "--weights", "scenes-plain"]) == 0
    asked = urlencode({"name": "/dev/../Été 1.jpg", "weights": "scenes-plain", "steps": "2", "samples": ""})
    _, answer, _ = ask("POST", f"deblur?{asked}", data)
    before, *shares, done = map(json.loads, answer.splitlines())
    assert [event["share"] for event in shares] == sorted(event["share"] for event in shares)
    status, result, headers = ask(address=done["result"])
    assert status == 200 and result == (tmp_path / "out.jpg").read_bytes()
    assert headers["Content-Disposition"] == "attachment; filename*=UTF-8''%C3%89t%C3%A9%201-deblurred.jpg"
    for address in (before["before"], done["after"]):
        assert Image.open(io.BytesIO(ask(address=address)[1])).size == (48, 40)
    assert "refused" in json.loads(ask("POST", "deblur?name=a.png", b"no")[1].splitlines()[-1])
    assert ask(address=done["result"])[0] == 404 and list(server.folder.iterdir()) == []  # the one before is gone


def test_16_bits_are_kept_and_shown_in_8(ask, upload, any_restorer):
    any_restorer(lambda advance: advance(1, 1))
    file = io.BytesIO()
    Image.new("I;16", (20, 10), 1000).save(file, "PNG")
    told = upload("deep.png", file.getvalue())
    modes = [Image.open(io.BytesIO(ask(address=told[which])[1])).mode for which in ("result", "after")]
    assert modes == ["I;16", "L"]


def test_memory_that_runs_out_is_told(upload, any_restorer):
    def work(advance):
        raise MemoryError

    any_restorer(work)
    assert upload("a.png", picture("PNG")) == {"refused": "a.png: not enough memory; make it smaller"}


@pytest.mark.parametrize("ends", ["page", "program"])
def test_a_page_that_is_closed_ends_the_work(ends, server, any_restorer):
    begun = threading.Event()

    def work(advance):
        for done in range(6000):
            advance(done, 6000)
            begun.set()
            time.sleep(0.01)

    any_restorer(work)
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.request("POST", f"/{server.secret}/deblur?name=a.png", picture("PNG"))
    assert begun.wait(60)
    if ends == "page":
        connection.sock.close()
    else:
        server.ended = True
    assert server.one.acquire(timeout=20)
    connection.close()
    assert list(server.folder.iterdir()) == [] and server.files == {}


# --- in a browser -------------------------------------------------------------------------------------------


@pytest.fixture
def running(tmp_path):
    """The address of a program of its own; it ends when it is told to, and leaves nothing behind."""
    (tmp_path / "temporary").mkdir()
    command = [sys.executable, "-m", "tinymsg", "app", "--no-browser", "--device", "cpu"]
    environment = os.environ | {"TMPDIR": str(tmp_path / "temporary")}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        yield process.stdout.readline().split()[1]
        process.terminate()
        assert process.wait(60) == 0
        assert list((tmp_path / "temporary").glob("tinymsg-*")) == []
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.course
@pytest.mark.browser
@pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt install chromium")
def test_in_a_browser(running, tmp_path):
    for name, data in {**HOSTILE, "holiday.jpg": picture(side=64)}.items():
        (tmp_path / name).write_bytes(data)
    with new_page(viewport={"width": 390, "height": 844}) as page:
        asked, mistakes = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: mistakes.append(error))
        page.goto(running)
        said, idle = page.locator("#said"), page.locator("body:not(.working)")

        def choose(name: str) -> None:
            page.locator("#file").set_input_files(tmp_path / name)

        for name in HOSTILE:
            choose(name)
            until(page, lambda name=name: said.inner_text().startswith(f"{name}: "), 120, said.inner_text)
            idle.wait_for()
            assert page.locator("#drop").is_visible() and not page.locator("#view").is_visible()

        dropped = "names => names.reduce((t, name) => (t.items.add(new File(['x'], name)), t), new DataTransfer())"
        for names, words in ((["a.png", "b.png"], "one picture at a time"), (["a.png"], "a.png: not a picture")):
            page.dispatch_event("body", "drop", {"dataTransfer": page.evaluate_handle(dropped, names)})
            until(page, lambda words=words: said.inner_text().startswith(words), 60, said.inner_text)

        page.get_by_text("fast").click()
        choose("holiday.jpg")
        until(page, lambda: said.inner_text().startswith("done in"), 240, said.inner_text)
        frame, slider = page.locator("#frame"), page.locator("#swipe")
        looks = [frame.screenshot()]
        box = frame.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] / 10, box["y"] + box["height"] / 2)
        page.mouse.up()
        assert abs(float(slider.input_value()) - 10) < 2
        looks.append(frame.screenshot())
        slider.press("End")
        looks.append(frame.screenshot())
        assert len(set(looks)) == 3
        page.locator("#actual").click()
        assert page.locator("#before").bounding_box()["width"] == 72
        with page.expect_download() as download:
            page.locator("#download").click()
        assert download.value.suggested_filename == "holiday-deblurred.jpg"
        with Image.open(download.value.path()) as result:
            assert (result.format, result.size) == ("JPEG", (72, 64))
        assert page.locator("html").evaluate("page => page.scrollWidth") <= 390

        page.locator("summary").click()
        page.locator("#samples").fill("5000")
        page.locator("#go").click()
        page.locator("#stop").wait_for()
        until(page, lambda: "left" in page.locator("#left").inner_text(), 120, said.inner_text)
        other = page.context.browser.new_page()
        other.goto(running)
        other.locator("#file").set_input_files(tmp_path / "holiday.jpg")
        until(other, lambda: other.locator("#said").inner_text() == app.BUSY, 60, other.locator("#said").inner_text)
        page.locator("#stop").click()
        idle.wait_for()
        assert said.inner_text() == "stopped"
    assert mistakes == [] and all(url.startswith((running, "data:")) for url in asked)
