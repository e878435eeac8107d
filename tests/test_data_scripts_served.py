"""Every data script against a local server: good, bad and evil archives, and runs that are stopped in the middle."""

import importlib
import io
import json
import os
import signal
import subprocess
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

import pytest
from bad_server import serve
from script_cases import SMALL, command, contents, data, mirrors, pictures_of, published, small, typed  # noqa: F401

import unpack  # isort: skip
from archive import Archive  # isort: skip


@pytest.fixture
def server(data):
    with serve({name: path.read_bytes() for name, path in data.archives.items()}) as running:
        yield running


@pytest.mark.parametrize(
    "behaviours", [("good",), ("missing", "html", "drops"), ("hidden_html", "confirm")], ids="-".join
)
def test_from_mirrors(data, small, server, tmp_path, capsys, behaviours):
    folder = tmp_path / "data"
    assert small(data.script, **mirrors(server, data, *behaviours))("--folder", folder) == 0, capsys.readouterr()
    found = contents(folder)
    record = json.loads(found.pop(f"{data.script}.json"))
    assert {name: entry["from"] for name, entry in record["archives"].items()} == {
        name: f"{server.url}/{behaviours[-1]}/{name}" for name in data.archives
    }
    assert {name: content for name, content in found.items() if name not in data.archives} == pictures_of(data)


def test_no_mirror_works(data, small, server, tmp_path, capsys):
    assert small(data.script, **mirrors(server, data, "missing", "quota"))("--folder", tmp_path / "data") == 1
    error = capsys.readouterr().err
    assert "by hand, from http" in error and "--from-archive" in error and error.count("\n") == 1
    assert contents(tmp_path / "data") == {}


EVIL = {  # what, and what is said of it; each within an otherwise whole archive
    "parent": ("../../evil.txt", b"x", tarfile.REGTYPE, "leaves the folder"),
    "absolute": (f"{tempfile.gettempdir()}/evil-{os.getpid()}.txt", b"x", tarfile.REGTYPE, "leaves the folder"),
    "symlink": ("link", b"/etc/passwd", tarfile.SYMTYPE, "holds a link"),
    "bomb": ("bomb", bytes(20_000_000), tarfile.REGTYPE, "unpacks to more than"),
}


def with_evil(archive: Path, name: str, content: bytes, kind: bytes) -> bytes:
    """The archive with one more member, at its end."""
    target = io.BytesIO()
    if zipfile.is_zipfile(archive):
        target.write(archive.read_bytes())
        with zipfile.ZipFile(target, "a", zipfile.ZIP_DEFLATED) as file:
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (0o120777 if kind == tarfile.SYMTYPE else 0o100644) << 16
            file.writestr(entry, content, zipfile.ZIP_DEFLATED)
        return target.getvalue()
    with tarfile.open(archive) as source, tarfile.open(fileobj=target, mode="w:gz") as file:
        for member in source:
            file.addfile(member, source.extractfile(member))
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = kind, content.decode() if kind == tarfile.SYMTYPE else ""
        entry.size = len(content) if kind == tarfile.REGTYPE else 0
        file.addfile(entry, io.BytesIO(content))
    return target.getvalue()


@pytest.mark.parametrize("evil", EVIL)
def test_an_evil_archive_from_a_mirror_or_by_hand(data, small, tmp_path, capsys, monkeypatch, evil):
    member, content, kind, message = EVIL[evil]
    monkeypatch.setattr(Archive, "max_unpacked", 10_000_000)
    name = [name for name in data.archives if not name.endswith(".txt")][-1]
    bad, folder = with_evil(data.archives[name], member, content, kind), tmp_path / "deep/data"
    (folder / "GOPRO_Large").mkdir(parents=True)
    (folder / "GOPRO_Large/mine.txt").write_text("mine")
    (tmp_path / name).write_bytes(bad)
    others = [path for other, path in data.archives.items() if other != name]
    with serve({name: bad}) as server:
        mine = importlib.import_module(data.script).MIRRORS | {name: (f"{server.url}/good/{name}",)}
        for files in ([*others, tmp_path / name], others):
            options = ["--from-archive", *files] if files else []
            assert small(data.script, MIRRORS=mine)("--folder", folder, *options) == 1
            assert message in capsys.readouterr().err
    assert (tmp_path / name).read_bytes() == bad and contents(folder / "GOPRO_Large") == {"mine.txt": b"mine"}
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["deep", name]) and [
        p.name for p in (tmp_path / "deep").iterdir()
    ] == ["data"]
    assert not Path(EVIL["absolute"][0]).exists() and not list(folder.rglob("evil*")) + list(
        folder.rglob("bomb")
    ) + list(folder.rglob(".unp*"))


def test_a_mirror_with_other_content_is_named_and_its_file_kept_for_a_look(published, small, tmp_path, capsys):
    with serve({"GOPRO_Large.zip": published("hide").archives["HIDE_dataset.zip"].read_bytes()}) as server:
        folder = tmp_path / "data"
        main = small("gopro", **mirrors(server, published("gopro"), "good"))
        for _ in range(2):
            assert main("--folder", folder) == 1
            error = capsys.readouterr().err
            assert (
                "is not what was published: " in error
                and f"delete {folder}/GOPRO_Large.zip to have it fetched again" in error
            )
        assert list(contents(folder)) == ["GOPRO_Large.zip"] and len(server.seen) == 1


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda s: s.name)
@pytest.mark.parametrize("script", ["gopro", "realblur"])
def test_stopped_in_mid_download_and_run_again(script, published, typed, tmp_path, stop):
    data, folder = published(script), tmp_path / "data"
    name = next(name for name in data.archives if not name.endswith(".txt"))
    part, half = folder / f"{name}.part", data.archives[name].stat().st_size // 2
    with serve({name: path.read_bytes() for name, path in data.archives.items()}) as server:
        changes = SMALL[script] | mirrors(server, data, "good")
        changes["MIRRORS"][name] = (f"{server.url}/waits/{name}",)
        with subprocess.Popen(
            command(script, "--folder", folder, **changes), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                deadline = time.monotonic() + 120
                while not part.exists():
                    assert time.monotonic() < deadline and process.poll() is None
                    time.sleep(0.02)
                time.sleep(0.2 if stop == signal.SIGKILL else 1)  # until the half has come that is sent
                process.send_signal(stop)
                error = process.communicate(timeout=120)[1]
            finally:
                process.kill()
        have = part.stat().st_size
        if stop == signal.SIGKILL:
            assert process.returncode == -signal.SIGKILL and have <= half
        else:
            assert process.returncode == 130 and "stopped; the next run goes on from here" in error and have == half
            assert not list(folder.glob(".*"))
        server.go_on.set()
        done = typed(script, "--folder", folder, **changes)
        assert done.returncode == 0, done.stderr
        assert server.seen[-1] == ("waits", f"bytes={have}-" if have else None)
    assert {path: content for path, content in contents(folder).items() if path in pictures_of(data)} == pictures_of(
        data
    )


def test_a_broken_archive_from_a_mirror_is_removed_so_that_the_next_run_fetches_it_again(
    published, small, tmp_path, capsys
):
    data, folder = published("gopro"), tmp_path / "data"
    content = bytearray(data.archives["GOPRO_Large.zip"].read_bytes())
    content[len(content) // 2] ^= 255  # within a picture: only unpacking finds it
    with serve({"GOPRO_Large.zip": bytes(content)}) as server:
        main = small("gopro", **mirrors(server, data, "good"))
        assert main("--folder", folder) == 1
        assert "removed, so that the next run fetches it again" in capsys.readouterr().err and contents(folder) == {}
        server.files["GOPRO_Large.zip"] = data.archives["GOPRO_Large.zip"].read_bytes()
        assert main("--folder", folder) == 0


def test_stopped_while_unpacking(data, small, tmp_path, capsys, monkeypatch):
    main, folder, written = small(data.script), tmp_path / "data", []

    def write(intake, source, place):
        written.append(place)
        if len(written) == 5:
            raise KeyboardInterrupt
        return plainly(intake, source, place)

    with monkeypatch.context() as patch:
        plainly = unpack.Intake.write
        patch.setattr(unpack.Intake, "write", write)
        assert main("--folder", folder, *data.by_hand) == 130
    assert not [name for name in contents(folder) if name.endswith((".png", ".jpg"))] and not list(folder.glob(".*"))
    assert main("--folder", folder, *data.by_hand) == 0


def test_what_a_killed_run_left_does_not_disturb(published, small, tmp_path):
    data, folder = published("gopro"), tmp_path / "data"
    (folder / ".unpacking-GOPRO_Large.zip/raw/GOPRO_Large").mkdir(parents=True)
    (folder / ".gopro.lock").touch()
    assert small("gopro")("--folder", folder, *data.by_hand) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["GOPRO_Large", "gopro.json"]
