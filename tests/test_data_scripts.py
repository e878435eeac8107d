"""Every data script on a miniature of its data set: archives fetched by hand, incomplete ones, and the true numbers."""

import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from miniatures import REALBLUR_FOLDERS, files_below, link_many, sharp_pixels, write_picture
from script_cases import (  # noqa: F401
    SCRIPTS,
    SMALL,
    contents,
    data,
    describe,
    download,
    first_archive,
    pictures_of,
    publish,
    published,
    small,
    typed,
    whole_names,
)

from fetch import next_lines  # isort: skip


# --- by hand -------------------------------------------------------------------------------------------------------------


def test_from_archives_as_typed(data, typed, tmp_path):
    folder = tmp_path / "data"
    done = typed(data.script, "--folder", folder, *data.by_hand, **SMALL[data.script])
    assert done.returncode == 0, done.stdout + done.stderr
    found = contents(folder)
    record = json.loads(found.pop(f"{data.script}.json"))
    assert found == pictures_of(data)
    assert set(record["archives"]) == set(data.archives)
    assert all(
        entry["sha256"] in done.stdout and entry["from"].startswith("by hand: ")
        for entry in record["archives"].values()
    )
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
    # The 48 blurry pictures of kohler, an archive by themselves, are as published; its sharp frames are too few
    left = first_archive(data) | {"kohler.json"} if data.script == "kohler" else set()
    assert set(contents(tmp_path / "data")) == left


@pytest.mark.parametrize("harm", ["lost", "small", "broken"])
def test_what_is_not_as_published_is_named_and_not_put_in_place(data, small, tmp_path, capsys, harm):
    tree = tmp_path / "tree"
    shutil.copytree(data.tree, tree)
    victim = next(
        p
        for p in reversed(files_below(tree))
        if p.suffix in (".png", ".jpg")
        and "test_list" not in p.name
        and "kernel" not in p.name
        and "train" not in p.parts
    )
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
    renamed = [
        Path(shutil.copy(path, tmp_path / (f"{name} (1)" if i == 0 else name)))
        for i, (name, path) in enumerate(archives)
    ]
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
        p
        for p in files_below(folder)
        if p.suffix in (".png", ".jpg") and p.relative_to(folder).as_posix() in first_archive(data)
    )
    victim.unlink()
    before = contents(folder)
    assert main("--folder", folder, "--from-archive", other) == 1
    error = capsys.readouterr().err
    assert f"is not the {name} of before" in error and "--any-checksum takes the new one" in error
    assert contents(folder) == before
    assert main("--folder", folder, "--from-archive", other, "--any-checksum") == 0
    assert victim.is_file(), "and a picture that was lost is back, beside those that were there"


# --- around it ------------------------------------------------------------------------------------------------------------


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
            f"{top}/scene{i // 20:03d}/gt/gt_{i % 20}.png {top}/scene{i // 20:03d}/blur/blur_{i % 20}.png "
            for i in range(980)
        )
        (folder / f"RealBlur/RealBlur_{kind}_test_list.txt").write_text("\n".join(lines))
    names[0].with_name(f"._{names[0].name}").write_bytes(b"what a Mac leaves beside a file")
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
def test_the_next_commands_are_commands(script, folder):
    """What a script tells to type next is understood by the command line of the library."""
    from tinymsg.__main__ import parser

    known = parser().format_help()
    for line in next_lines(describe(script, folder), folder):
        words = line.split()
        assert words[:3] == ["python", "-m", "tinymsg"]
        if not all(name in known for name in ("pack", "paper")):
            pytest.skip("the library here has no pack or no paper command")
        args = parser().parse_args(words[3:])  # exits, and so fails, on what it does not know
        assert getattr(args, "root", None) == str(folder) or f"{folder}/" in line
