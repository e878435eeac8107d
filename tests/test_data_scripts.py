"""Every data script on a miniature of its data set: by hand, from a server, interrupted, incomplete, with the true numbers."""

import importlib
import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from bad_server import serve
from miniatures import REALBLUR_FOLDERS, files_below, link_many, sharp_pixels, write_picture
from published import (SCRIPTS, SMALL, Published, command, contents, describe, download, first_archive, mirrors, pictures_of,
                       publish, published, small, typed, whole_names)  # noqa: F401  # fmt: skip

import unpack  # isort: skip
from fetch import next_lines  # isort: skip


@pytest.fixture(params=SMALL)
def data(request, published) -> Published:
    return published(request.param)


# --- by hand -------------------------------------------------------------------------------------------------------------


def test_from_archives_as_typed(data, typed, tmp_path):
    folder = tmp_path / "data"
    done = typed(data.script, "--folder", folder, *data.by_hand, **SMALL[data.script])
    assert done.returncode == 0, done.stdout + done.stderr
    found = contents(folder)
    record = json.loads(found.pop(f"{data.script}.json"))
    assert found == pictures_of(data)
    assert set(record["archives"]) == set(data.archives)
    assert all(entry["sha256"] in done.stdout and entry["from"].startswith("by hand: ") for entry in record["archives"].values())
    assert "Licence: " in done.stdout and "Cite: " in done.stdout and record["citation"] in done.stdout
    assert done.stdout.splitlines()[-1].startswith("  python -m tinymsg ")
    before = {path: path.stat().st_mtime_ns for path in files_below(folder)}
    again = typed(data.script, "--folder", folder, **SMALL[data.script])
    assert again.returncode == 0 and "nothing to do" in again.stdout and "Licence" not in again.stdout
    assert before == {path: path.stat().st_mtime_ns for path in files_below(folder)}


def test_a_miniature_is_not_the_published_data(data, typed, tmp_path):
    done = typed(data.script, "--folder", tmp_path / "data", *data.by_hand, "--any-checksum")
    assert done.returncode == 1 and done.stdout
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert any(number in done.stderr for number in ("2103", "6397", "980", "3000", "200", "48", "255x255")), done.stderr
    assert (
        contents(tmp_path / "data") in ({}, {"kohler.json": contents(tmp_path / "data").get("kohler.json")})
        or data.script == "kohler"
    )


@pytest.mark.parametrize("harm", ["lost", "small", "broken"])
def test_what_is_not_as_published_is_named_and_not_put_in_place(data, small, tmp_path, capsys, harm):
    tree = tmp_path / "tree"
    shutil.copytree(data.tree, tree)
    victim = next(p for p in reversed(files_below(tree)) if p.suffix in (".png", ".jpg") and "test_list" not in p.name
                  and "kernel" not in p.name and "train" not in p.parts)  # fmt: skip
    if harm == "lost":
        victim.unlink()
    elif harm == "small":
        write_picture(victim, sharp_pixels(0, (16, 8), 1 if data.script == "levin" else 3))
    else:
        victim.write_bytes(b"not a picture")
    if data.script == "kohler" and harm == "lost":
        (victim.with_name(victim.name.replace("_3.png", "_2.png"))).unlink()
    bad, folder = publish(data.script, tmp_path, tree), tmp_path / "data"
    (folder / "mine").mkdir(parents=True)
    (folder / "mine/a.txt").write_text("mine")
    assert small(data.script)("--folder", folder, *bad.by_hand) == 1
    error = capsys.readouterr().err
    assert "is not what was published: " in error and error.count("\n") == 1 and ".unpacking" not in error
    assert harm != "broken" or "is not a whole PNG or JPEG" in error
    assert harm != "small" or ("16x8" in error and "pixels instead of" in error)
    assert contents(folder / "mine") == {"a.txt": b"mine"}
    assert victim.relative_to(tree).as_posix() not in contents(folder)


def test_files_by_hand_are_matched_by_name_or_as_the_only_one_left(data, small, tmp_path, capsys):
    main, folder = small(data.script), tmp_path / "data"
    assert main("--folder", folder, "--from-archive", tmp_path / "nothing.zip") == 1
    assert "nothing.zip: no such file" in capsys.readouterr().err
    archives = sorted(data.archives.items(), key=lambda item: item[0].endswith(".txt"))
    renamed = [Path(shutil.copy(path, tmp_path / (f"{name} (1)" if i == 0 else name))) for i, (name, path) in enumerate(archives)]
    assert main("--folder", folder, "--from-archive", *renamed) == 0
    stranger = Path(shutil.copy(renamed[0], tmp_path / "stranger"))
    other = Path(shutil.copy(renamed[0], tmp_path / "stranger 2"))
    assert main("--folder", tmp_path / "other", "--from-archive", stranger, other) == 1
    assert "which archive is stranger? Name it like one of " in capsys.readouterr().err


def test_a_second_copy_that_differs_from_the_first_is_told(data, small, tmp_path, capsys):
    main, folder = small(data.script), tmp_path / "data"
    assert main("--folder", folder, *data.by_hand) == 0
    name, path = next(iter(data.archives.items()))
    other = Path(shutil.copy(path, tmp_path / name))
    with open(other, "ab") as file:  # still a whole archive for everybody who reads it, but of other bytes
        file.write(b"\0" * 64 if not name.endswith(".txt") else b"\n")
    victim = next(
        p for p in files_below(folder) if p.suffix in (".png", ".jpg") and p.relative_to(folder).as_posix() in first_archive(data)
    )
    victim.unlink()
    before = contents(folder)
    assert main("--folder", folder, "--from-archive", other) == 1
    error = capsys.readouterr().err
    assert f"is not the {name} of before" in error and "--any-checksum takes the new one" in error
    assert contents(folder) == before
    assert main("--folder", folder, "--from-archive", other, "--any-checksum") == 0
    assert victim.is_file(), "and a picture that was lost is back, beside those that were there"


# --- from a server -------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(data):
    with serve({name: path.read_bytes() for name, path in data.archives.items()}) as running:
        yield running


@pytest.mark.parametrize("behaviours", [("good",), ("missing", "html", "drops"), ("hidden_html", "confirm")], ids="-".join)
def test_from_mirrors(data, small, server, tmp_path, capsys, behaviours):
    folder = tmp_path / "data"
    assert small(data.script, **mirrors(server, data, *behaviours))("--folder", folder) == 0, capsys.readouterr()
    found = contents(folder)
    record = json.loads(found.pop(f"{data.script}.json"))
    assert {name: entry["from"] for name, entry in record["archives"].items()} == {
        name: f"{server.url}/{behaviours[-1]}/{name}" for name in data.archives}  # fmt: skip
    assert {name: content for name, content in found.items() if name not in data.archives} == pictures_of(data)


def test_no_mirror_works(data, small, server, tmp_path, capsys):
    assert small(data.script, **mirrors(server, data, "missing", "quota"))("--folder", tmp_path / "data") == 1
    error = capsys.readouterr().err
    assert "by hand, from http" in error and "--from-archive" in error and error.count("\n") == 1
    assert contents(tmp_path / "data") == {}


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda s: s.name)
@pytest.mark.parametrize("script", ["gopro", "realblur"])
def test_stopped_in_mid_download_and_run_again(script, published, typed, tmp_path, stop):
    data, folder = published(script), tmp_path / "data"
    name = next(name for name in data.archives if not name.endswith(".txt"))
    part, half = folder / f"{name}.part", data.archives[name].stat().st_size // 2
    with serve({name: path.read_bytes() for name, path in data.archives.items()}) as server:
        changes = SMALL[script] | mirrors(server, data, "good")
        changes["MIRRORS"][name] = (f"{server.url}/waits/{name}",)
        with subprocess.Popen(command(script, "--folder", folder, **changes), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                              text=True) as process:  # fmt: skip
            try:
                deadline = time.monotonic() + 30
                while not part.exists():
                    assert time.monotonic() < deadline and process.poll() is None
                    time.sleep(0.02)
                time.sleep(0.2)
                process.send_signal(stop)
                error = process.communicate(timeout=30)[1]
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
    assert {path: content for path, content in contents(folder).items() if path in pictures_of(data)} == pictures_of(data)


def test_a_broken_archive_from_a_mirror_is_removed_so_that_the_next_run_fetches_it_again(published, small, tmp_path, capsys):
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


def test_two_runs_at_once(published, small, tmp_path, capsys):
    fcntl = pytest.importorskip("fcntl")
    data, folder = published("gopro"), tmp_path / "data"
    folder.mkdir()
    with open(folder / ".gopro.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert small("gopro")("--folder", folder, *data.by_hand) == 1
    assert "another run is fetching" in capsys.readouterr().err


def test_too_little_space_is_said_first(data, small, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: type("Usage", (), {"free": -1}))
    assert small(data.script)("--folder", tmp_path / "data", *data.by_hand) == 1
    assert "GB are needed below" in capsys.readouterr().err and not (tmp_path / "data").exists()


def test_a_folder_that_cannot_be_written(published, small, tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    assert small("gopro")("--folder", tmp_path / "file", *published("gopro").by_hand) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and str(tmp_path / "file") in error and error.count("\n") == 1


def test_usage(typed):
    for script in SMALL:
        assert typed(script, "--no-such-option").returncode == 2
        helped = typed(script, "--help")
        assert helped.returncode == 0 and "--from-archive" in helped.stdout
    assert typed("gopro", "--blur", "gamma").returncode == 2


# --- the true numbers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SMALL)
def test_the_published_numbers_as_typed(script, typed, tmp_path):
    """The script without any change, on a tree of the true counts and sizes: one flat picture under thousands of names."""
    w, h = {"bsds500": (481, 321), "levin": (255, 255), "kohler": (800, 800)}.get(script, (1280, 720))
    picture, folder = tmp_path / ("a.jpg" if script == "bsds500" else "a.png"), tmp_path / "data"
    write_picture(picture, np.full((h, w, 3), 90, np.uint8))
    names = [folder / name for name in whole_names(script)]
    link_many(picture, names)
    for kind, top in REALBLUR_FOLDERS.items() if script == "realblur" else ():
        lines = (
            f"{top}/scene{i // 20:03d}/gt/gt_{i % 20}.png {top}/scene{i // 20:03d}/blur/blur_{i % 20}.png " for i in range(980)
        )
        (folder / f"RealBlur/RealBlur_{kind}_test_list.txt").write_text("\n".join(lines))
    done = typed(script, "--folder", folder)
    assert done.returncode == 0, done.stderr
    assert "nothing to do" in done.stdout
    names[0].unlink()
    assert any(archive.missing(folder) for archive in describe(script, folder).archives), "one picture less is noticed"


@pytest.mark.parametrize("script", SMALL)
def test_every_script_states_its_sources(script):
    data, module = describe(script, Path("data")), importlib.import_module(script)
    assert data.key == script and data.licence and data.citation and data.title
    for archive in data.archives:
        assert archive.mirrors == module.MIRRORS[archive.name] and archive.pages
        assert all(url.startswith("http") and " " not in url and download.direct_url(url) for url in archive.mirrors)
    text = (SCRIPTS / f"{script}.py").read_text()
    assert "http" not in text[text.index("\n\n\ndef ") :], "every address stands among the constants at the top"


@pytest.mark.parametrize("folder", [Path("data"), Path("elsewhere")], ids=str)
@pytest.mark.parametrize("script", SMALL)
def test_the_next_commands_are_commands(script, folder, capsys):
    """What a script tells to type next is understood by the command line of the library."""
    from tinymsg.__main__ import parser

    known = parser().format_help()
    for line in next_lines(describe(script, folder), folder):
        words = line.split()
        assert words[:3] == ["python", "-m", "tinymsg"]
        if not all(name in known for name in ("pack", "paper")):
            pytest.skip("the library here has no pack or no paper command")
        args = parser().parse_args(words[3:])  # exits, and so fails, on what it does not know
        assert getattr(args, "root", str(folder)) == str(folder)
