"""Downloads from a local server that also misbehaves: the right file, or one clear sentence; what was there stays."""

import hashlib
import io
import json
import sys
import zipfile
from pathlib import Path

import pytest
from bad_server import serve

sys.path.insert(0, str(Path(__file__).parents[1] / "data_scripts"))
import archive as archive_module  # noqa: E402
import download  # noqa: E402
from archive import Archive, FetchError, Progress  # noqa: E402


def make_zip(seed: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for i in range(20):
            file.writestr(f"SET/{i}.bin", hashlib.sha256(bytes([seed, i])).digest() * 500)
    return buffer.getvalue()


WHOLE, OTHER = make_zip(0), make_zip(1)  # of one size
MD5, SHA256 = hashlib.md5(WHOLE).hexdigest(), hashlib.sha256(WHOLE).hexdigest()


@pytest.fixture
def server():
    with serve({"set.zip": WHOLE, "other set.zip": OTHER}) as running:
        yield running


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(download, "WAITS", (0, 0, 0))
    monkeypatch.setattr(download, "TIMEOUT", 5)


def set_from(server, *behaviours: str, **changes) -> Archive:
    return Archive(
        "set.zip", tuple(f"{server.url}/{b}/set.zip" for b in behaviours), "SET", lambda folder: "all of it", **changes
    )


def fetch(archive: Archive, folder: Path, **options) -> download.Fetched:
    fetch.said = []
    return download.fetch_archive(archive, folder, fetch.said.append, **options)


@pytest.mark.parametrize(
    "known", [{}, {"md5": MD5}, {"sha256": SHA256}, {"size": len(WHOLE)}], ids=["nothing", "md5", "sha256", "size"]
)
def test_a_good_mirror(server, tmp_path, known):
    fetched = fetch(set_from(server, "good", **known), tmp_path / "new")
    assert fetched.path.read_bytes() == WHOLE and fetched.sha256 == SHA256
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["set.zip"]
    fetch(set_from(server, "good"), tmp_path / "new")
    assert len(server.seen) == 1, "a file that is here is not fetched again"


@pytest.mark.parametrize("known", [{}, {"md5": MD5}], ids=["unknown", "known"])
@pytest.mark.parametrize(
    "behaviour", ["drops", "drops_once", "no_etag", "no_length", "ignores_range", "busy_once", "confirm"]
)
def test_a_mirror_that_works_in_the_end(server, tmp_path, behaviour, known):
    assert fetch(set_from(server, behaviour, **known), tmp_path).path.read_bytes() == WHOLE
    assert [p.name for p in tmp_path.iterdir()] == ["set.zip"]
    if behaviour == "drops":
        assert len(server.seen) == 3
        assert server.seen[-1][1] == f"bytes={2 * (len(WHOLE) // 3 + 1)}-", (
            "each connection goes on where the last one broke"
        )


FAILURES = {
    "missing": "404",
    "fails": "500",
    "html": "web page",
    "hidden_html": "web page",
    "quota": "quota for this file is used up",
    "promises_more": "less than was begun or promised",
    "promises_less": "not a whole zip",
    "drops_and_ignores_range": "ended at",
    "hub": "instead of",
}


@pytest.mark.parametrize(("behaviour", "message"), FAILURES.items())
def test_a_mirror_that_does_not_work(server, tmp_path, behaviour, message):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FetchError, match=message) as error:
        fetch(set_from(server, behaviour, pages=("https://example.org/set",)), tmp_path)
    assert "by hand, from https://example.org/set" in str(error.value) and "\n" not in str(error.value)
    assert (tmp_path / "mine.txt").read_text() == "mine" and not (tmp_path / "set.zip").exists()
    assert behaviour != "promises_more" or not (tmp_path / "set.zip.part").exists(), (
        "a part that cannot be continued is not kept"
    )
    assert fetch(set_from(server, behaviour, "good"), tmp_path).path.read_bytes() == WHOLE, "the next mirror takes over"


def test_a_connection_that_falls_silent_is_taken_up_again(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 3)
    assert fetch(set_from(server, "waits"), tmp_path).path.read_bytes() == WHOLE
    assert server.seen == [("waits", None), ("waits", f"bytes={len(WHOLE) // 2}-")]
    assert any("trying again in 0 s" in line for line in fetch.said)


def test_nobody_listens(tmp_path):
    url = "http://127.0.0.1:9/set.zip"
    with pytest.raises(FetchError, match="not reachable"):
        fetch(Archive("set.zip", (url,), "SET", lambda folder: None), tmp_path)


def test_an_earlier_part_is_continued(server, tmp_path):
    (tmp_path / "set.zip.part").write_bytes(WHOLE[:5000])
    state = {"url": f"{server.url}/good/set.zip", "total": len(WHOLE), "validator": f'"{MD5}"', "sha256": None}
    (tmp_path / "set.zip.part.json").write_text(json.dumps(state))
    assert fetch(set_from(server, "missing", "good"), tmp_path).path.read_bytes() == WHOLE
    assert server.seen == [("good", "bytes=5000-")], "the mirror that was begun comes first"
    assert server.conditions == [f'"{MD5}"'], "and is told what was begun"


@pytest.mark.parametrize("behaviour", ["changes", "changes_silently"])
def test_a_file_that_changed_meanwhile_is_never_spliced(server, tmp_path, behaviour):
    assert fetch(set_from(server, behaviour), tmp_path).path.read_bytes() == OTHER


def test_parts_of_unknown_origin_are_never_spliced(server, tmp_path):
    (tmp_path / "set.zip.part").write_bytes(OTHER[:5000])
    assert fetch(set_from(server, "good"), tmp_path).path.read_bytes() == WHOLE
    assert server.seen == [("good", None)]


def test_another_mirror_goes_on_only_if_a_checksum_will_tell(server, tmp_path):
    archive = set_from(server, "drops_and_ignores_range", "good", md5=MD5)
    assert fetch(archive, tmp_path).path.read_bytes() == WHOLE
    assert server.seen[-1] == ("good", f"bytes={len(WHOLE) // 2}-")
    (tmp_path / "set.zip").unlink()
    assert fetch(set_from(server, "drops_and_ignores_range", "good"), tmp_path).path.read_bytes() == WHOLE
    assert server.seen[-1] == ("good", None)


def test_a_wrong_checksum_leaves_nothing_and_the_next_mirror_is_tried(server, tmp_path):
    with pytest.raises(FetchError, match=f"MD5 {hashlib.md5(OTHER).hexdigest()} instead of {MD5}.*removed"):
        fetch(set_from(server, "other", md5=MD5), tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert fetch(set_from(server, "other", "good", md5=MD5), tmp_path).path.read_bytes() == WHOLE


def test_any_checksum_takes_another_version_and_says_so(server, tmp_path):
    assert fetch(set_from(server, "other", md5=MD5), tmp_path, any_checksum=True).path.read_bytes() == OTHER
    assert any("taken all the same" in line for line in fetch.said)


def test_any_checksum_does_not_join_mirrors(server, tmp_path):
    archive = set_from(server, "drops_and_ignores_range", "other", md5=MD5)
    assert fetch(archive, tmp_path, any_checksum=True).path.read_bytes() == OTHER


def test_a_file_in_place_with_a_wrong_checksum_is_left_alone(server, tmp_path):
    (tmp_path / "set.zip").write_bytes(OTHER)
    with pytest.raises(FetchError, match="instead of"):
        fetch(set_from(server, "good", md5=MD5), tmp_path)
    assert (tmp_path / "set.zip").read_bytes() == OTHER and server.seen == []


def test_the_checksum_that_a_hub_names_is_believed(server, tmp_path):
    right = Archive("set.zip", (f"{server.url}/hub/set.zip?right=1",), "SET", lambda folder: None)
    assert fetch(right, tmp_path).path.read_bytes() == WHOLE
    (tmp_path / "set.zip").unlink()
    with pytest.raises(FetchError, match=f"instead of {SHA256}"):
        fetch(set_from(server, "hub"), tmp_path, any_checksum=True)


def test_a_server_that_offers_another_size_is_not_waited_for(server, tmp_path):
    with pytest.raises(FetchError, match="offers 322 kB where about 10.00 GB are published"):
        fetch(set_from(server, "good", size=10**10), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_too_little_space_is_said_before_anything_is_written(server, tmp_path, monkeypatch):
    monkeypatch.setattr(archive_module.shutil, "disk_usage", lambda place: type("Usage", (), {"free": 100_000}))
    with pytest.raises(FetchError, match="are needed"):
        fetch(set_from(server, "good"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_keeps_what_has_come(server, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Progress, "add", full)
    with pytest.raises(FetchError, match="the disk is full"):
        fetch(set_from(server, "good"), tmp_path)
    assert WHOLE.startswith((tmp_path / "set.zip.part").read_bytes())


@pytest.mark.parametrize(
    ("shared", "direct"),
    [
        ("https://www.dropbox.com/s/04w/HIDE_dataset.zip?dl=0", "https://www.dropbox.com/s/04w/HIDE_dataset.zip?dl=1"),
        (
            "https://www.dropbox.com/scl/fi/rv/H.zip?rlkey=a&dl=0",
            "https://www.dropbox.com/scl/fi/rv/H.zip?rlkey=a&dl=1",
        ),
        (
            "https://drive.google.com/file/d/17v-5_D/view?usp=sharing",
            "https://drive.google.com/uc?export=download&id=17v-5_D",
        ),
        ("https://example.org/a.zip?x=1", "https://example.org/a.zip?x=1"),
    ],
)
def test_links_that_people_share(shared, direct):
    assert download.direct_url(shared) == direct


def test_a_drive_folder_is_refused_with_the_reason():
    with pytest.raises(FetchError, match="by hand"):
        download.direct_url("https://drive.google.com/drive/folders/1xUNAAV")


def test_a_confirmation_page_cannot_send_us_to_another_plain_http_host():
    page = '<form id="download-form" action="{}"><input name="confirm" value="t"></form>'
    assert download.confirmation(page.format("http://elsewhere.org/x"), "http://127.0.0.1/a") is None
    onward = "https://drive.usercontent.google.com/download"
    assert download.confirmation(page.format(onward), "https://drive.google.com/uc?id=1") == f"{onward}?confirm=t"
    assert download.confirmation("<html>nothing to confirm</html>", "http://127.0.0.1/a") is None


def test_progress_tells_rate_and_time_left():
    lines = []
    progress = Progress("set.zip", 4_000_000_000, lines.append, have=1_000_000_000)
    progress.interval, progress.start = 0, progress.start - 10
    progress.add(1_000_000_000)
    assert lines[0].startswith("set.zip: 2.00 GB of 4.00 GB (50%), ") and lines[0].endswith("/s, 20 s left")
    assert Progress("a", None, lines.append).line(0).startswith("a: 0 kB")
    assert [archive_module.duration(s) for s in (5, 600, 11100)] == ["5 s", "10 min", "3 h 5 min"]
