# ruff: noqa: F811 - fixtures are imported and then named as arguments
"""Every data script on a miniature of its data set: by hand, from mirrors, incomplete, stopped, and its own choices."""

import json
import shlex
import shutil
import signal
import sys
import tarfile
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from bad_server import serve
from miniatures import MINIATURES, files_below, link_many, make_levin_mat, sharp_pixels, write_picture
from script_cases import (  # noqa: F401
    SCRIPTS,
    contents,
    data,
    fetch,
    mirrors,
    pictures_of,
    publish,
    published,
    small,
    small_process,
    typed,
)

from tinymsg.datasets.facts import ARCHIVES, SETS

# --- from files and from mirrors ------------------------------------------------------------------------------------


def test_from_files_fetched_by_hand_and_then_nothing_to_do(data, small, tmp_path, capsys):
    main, folder = small(data.script), tmp_path / "data"
    assert main("--folder", folder, *data.by_hand) == 0, capsys.readouterr().err
    said, found = capsys.readouterr().out, contents(folder)
    record = json.loads(found.pop(f"{data.script}.json"))
    assert found == pictures_of(data)
    assert set(record["archives"]) == set(data.archives)
    assert all(entry["sha256"] in said and "by hand" in entry["from"] for entry in record["archives"].values())
    assert "Licence: " in said and all(f"Cite: {citation}" in said for citation in record["citation"])
    before = {path: path.stat().st_mtime_ns for path in files_below(folder)}
    assert main("--folder", folder) == 0 and "nothing to do" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in files_below(folder)}


def test_from_mirrors_of_which_two_are_dead(data, small, tmp_path, capsys):
    folder = tmp_path / "data"
    with serve({name: path.read_bytes() for name, path in data.archives.items()}) as server:
        urls = mirrors(server, data, "missing", "html", "drops")
        assert small(data.script, **urls)("--folder", folder) == 0, capsys.readouterr().err
        asked = len(server.seen)
        assert small(data.script, **urls)("--folder", folder) == 0 and len(server.seen) == asked
    found = contents(folder)
    record = json.loads(found.pop(f"{data.script}.json"))
    assert {name: entry["from"] for name, entry in record["archives"].items()} == {n: u[-1] for n, u in urls.items()}
    assert {name: content for name, content in found.items() if name not in data.archives} == pictures_of(data)
    assert "answered 404" in capsys.readouterr().out


def test_no_mirror_works(data, small, tmp_path, capsys):
    with serve({name: path.read_bytes() for name, path in data.archives.items()}) as server:
        urls = mirrors(server, data, "missing", "fails")
        assert small(data.script, **urls)("--folder", tmp_path / "data") == 1
    error = capsys.readouterr().err
    assert "404" in error and "500" in error and "--from-archive" in error and error.count("\n") == 1
    assert contents(tmp_path / "data") == {}


@pytest.mark.parametrize("script", MINIATURES)
def test_a_miniature_is_not_the_published_data(script, published, tmp_path, capsys):
    arguments = ["--folder", tmp_path / "data", *published(script).by_hand, "--any-checksum"]
    if script in ("kodak24", "levin"):
        pytest.skip("it has as many pictures as the published one")
    assert fetch.main(script, [*map(str, arguments)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert any(number in error for number in ("2103", "6397", "980", "3000", "200", "2376", "48", "4738")), error
    # The 48 blurry pictures of kohler, an archive by themselves, are as published; its sharp frames are too few
    assert not [name for name in contents(tmp_path / "data") if "Blurry" not in name and name != "kohler.json"]


@pytest.mark.parametrize("harm", ["lost", "small", "broken"])
def test_what_is_not_as_published_is_named_and_not_put_in_place(data, small, tmp_path, capsys, harm):
    tree, folder = shutil.copytree(data.tree, tmp_path / "tree"), tmp_path / "data"
    if data.script in ("levin", "realblur") and harm == "small":
        pytest.skip("its pictures have no common size")
    victim = [path for path in files_below(tree) if path.suffix in (".png", ".jpg") and "kernel" not in path.name][-1]
    if harm == "lost":
        victim.unlink()
    elif harm == "small":
        write_picture(victim, sharp_pixels(0, (16, 8)))
    else:
        victim.write_bytes(b"not a picture")
    bad = publish(data.script, tmp_path, tree)
    (folder / "mine").mkdir(parents=True)
    (folder / "mine/a.txt").write_text("mine")
    assert small(data.script)("--folder", folder, *bad.by_hand) == 1
    error = capsys.readouterr().err
    assert "is not what was published: " in error and error.count("\n") == 1 and ".unpacking" not in error
    assert harm != "broken" or victim.name in error
    assert harm != "small" or "16x8" in error
    assert contents(folder / "mine") == {"a.txt": b"mine"}
    assert victim.relative_to(tree).as_posix() not in contents(folder)


def test_files_by_hand_are_matched_by_name_or_as_the_only_one_left(data, small, tmp_path, capsys):
    main = small(data.script)
    assert main("--folder", tmp_path / "data", "--from-archive", tmp_path / "nothing.zip") == 1
    assert "nothing.zip" in capsys.readouterr().err
    first, *others = sorted(data.archives, key=lambda name: name.endswith(".txt"))
    renamed = shutil.copy(data.archives[first], tmp_path / f"{first} (1)")
    files = [data.archives[name] for name in others]
    assert main("--folder", tmp_path / "data", "--from-archive", renamed, *files) == 0
    stranger = shutil.copy(renamed, tmp_path / "stranger")
    assert main("--folder", tmp_path / "other", "--from-archive", stranger, renamed) == 1
    assert "Name it like one of " in capsys.readouterr().err


def test_a_second_copy_that_differs_from_the_first_is_told(published, small, tmp_path, capsys):
    data, main, folder = published("gopro"), small("gopro"), tmp_path / "data"
    assert main("--folder", folder, *data.by_hand) == 0
    other = shutil.copy(data.archives["GOPRO_Large.zip"], tmp_path)
    with open(other, "ab") as file:  # still a whole archive for everybody who reads it, but of other bytes
        file.write(b"\0" * 64)
    victim = next(folder.rglob("sharp/*.png"))
    victim.unlink()
    before = contents(folder)
    assert main("--folder", folder, "--from-archive", other) == 1
    assert "--any-checksum" in capsys.readouterr().err and contents(folder) == before
    assert main("--folder", folder, "--from-archive", other, "--any-checksum") == 0
    assert victim.is_file(), "and a picture that was lost is back, beside those that were there"


def test_a_broken_archive_is_fetched_again_and_a_wrong_one_is_kept(published, small, tmp_path, capsys):
    data, folder = published("gopro"), tmp_path / "data"
    whole = data.archives["GOPRO_Large.zip"].read_bytes()
    broken = bytearray(whole)
    broken[len(broken) // 2] ^= 255  # within a picture: only unpacking finds it
    with serve({"GOPRO_Large.zip": bytes(broken)}) as server:
        main = small("gopro", **mirrors(server, data, "good"))
        assert main("--folder", folder) == 1
        assert "fetches it again" in capsys.readouterr().err and contents(folder) == {}
        server.files["GOPRO_Large.zip"] = published("hide").archives["HIDE_dataset.zip"].read_bytes()
        assert [main("--folder", folder) for _ in range(2)] == [1, 1]
        assert list(contents(folder)) == ["GOPRO_Large.zip"] and len(server.seen) == 2
        (folder / "GOPRO_Large.zip").unlink()
        server.files["GOPRO_Large.zip"] = whole
        assert main("--folder", folder) == 0


@pytest.mark.parametrize("script", ["gopro", "realblur"])
def test_an_evil_archive_leaves_nothing(published, small, tmp_path, capsys, script):
    """A path that leaves the folder, in an otherwise whole zip or tar, from a mirror and by hand."""
    data, folder = published(script), tmp_path / "deep/data"
    name = next(name for name in data.archives if not name.endswith(".txt"))
    (tmp_path / "evil").write_text("evil")
    evil = shutil.copy(data.archives[name], tmp_path / name)
    if name.endswith(".zip"):
        with zipfile.ZipFile(evil, "a") as file:
            file.write(tmp_path / "evil", "../../../evil.png")
    else:
        with tarfile.open(evil, "w:gz") as file, tarfile.open(data.archives[name]) as honest:
            for member in honest:
                file.addfile(member, honest.extractfile(member))
            file.add(tmp_path / "evil", "../../../evil.png")
    with serve({one: path.read_bytes() for one, path in (data.archives | {name: Path(evil)}).items()}) as server:
        main = small(script, **mirrors(server, data, "good"))
        assert main("--folder", folder, "--from-archive", evil) == 1 == main("--folder", folder)
    assert capsys.readouterr().err.count("leaves the folder") == 2
    assert not list(tmp_path.rglob("*.png")) and not (tmp_path.parent / "evil.png").exists()


# --- stopped --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGKILL], ids=lambda s: s.name)
def test_stopped_in_mid_download_and_run_again(published, tmp_path, stop):
    data, folder = published("gopro"), tmp_path / "data"
    half = data.archives["GOPRO_Large.zip"].stat().st_size // 2
    with serve({name: path.read_bytes() for name, path in data.archives.items()}) as server:
        with small_process(data, mirrors(server, data, "waits"), "--folder", folder) as process:
            deadline = time.monotonic() + 60
            while not any(path.suffix == ".part" for path in folder.rglob("*")):
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.02)
            time.sleep(0.5)  # until the half has come that is sent
            process.send_signal(stop)
            error = process.communicate(timeout=60)[1]
        assert process.returncode == (-signal.SIGKILL if stop == signal.SIGKILL else 130), error
        have = sum(path.stat().st_size for path in folder.rglob("*.part"))
        assert have <= half and (stop == signal.SIGKILL or "goes on" in error)
        server.go_on.set()
        with small_process(data, mirrors(server, data, "waits"), "--folder", folder) as process:
            assert process.wait(60) == 0, process.stderr.read()
        assert have == 0 or server.seen[-1] == ("waits", f"bytes={have}-")
    found = contents(folder)
    assert {name: found.get(name) for name in pictures_of(data)} == pictures_of(data)


def test_stopped_while_unpacking(data, small, tmp_path, monkeypatch):
    main, folder = small(data.script), tmp_path / "data"

    def stop(path, place, limit):
        place.mkdir()
        (place / "half.png").write_bytes(b"half a picture")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fetch, "unpack_archive", stop)
        assert main("--folder", folder, *data.by_hand) == 130
    assert not [name for name in contents(folder) if name.endswith((".png", ".jpg"))]
    (folder / f".unpacking-{next(iter(data.archives))}/raw").mkdir(parents=True)  # a run that was killed leaves that
    assert main("--folder", folder, *data.by_hand) == 0 and not list(folder.glob(".unpacking*"))


# --- around it ------------------------------------------------------------------------------------------------------


def test_two_runs_at_once(published, small, tmp_path, capsys):
    folder = tmp_path / "data"
    with fetch.filelock.FileLock(folder / ".gopro.lock"):
        assert small("gopro")("--folder", folder, *published("gopro").by_hand) == 1
    assert "another run" in capsys.readouterr().err


def test_too_little_space_is_said_first(data, small, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: type("Usage", (), {"free": -1}))
    assert small(data.script)("--folder", tmp_path / "data", *data.by_hand) == 1
    assert "GB" in capsys.readouterr().err and not (tmp_path / "data").exists()


def test_a_folder_that_cannot_be_written(published, small, tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    assert small("gopro")("--folder", tmp_path / "file", *published("gopro").by_hand) == 1
    error = capsys.readouterr().err
    assert str(tmp_path / "file") in error and error.count("\n") == 1


@pytest.mark.parametrize("script", MINIATURES)
def test_every_script_is_there_and_says_what_it_fetches(script, tmp_path, capsys):
    assert f'command("{script}")' in (SCRIPTS / f"{script}.py").read_text()
    with pytest.raises(SystemExit, match="0"):
        fetch.main(script, ["--help"])
    said = capsys.readouterr().out
    assert "--from-archive" in said and all(known.title in said for known in SETS.values() if known.script == script)
    with pytest.raises(SystemExit, match="2"):
        fetch.main(script, ["--no-such-option"])


def test_as_typed_on_a_tree_of_the_true_numbers(tmp_path):
    """The script without any change: one flat picture under thousands of names."""
    picture, folder = tmp_path / "a.png", tmp_path / "data"
    write_picture(picture, sharp_pixels(0, (1280, 720)))
    kinds = [(split, count, kind) for split, count in (("train", 2103), ("test", 1111)) for kind in ("blur", "sharp")]
    places = [folder / f"GOPRO_Large/{s}/GOPR{i % 7}/{k}/{i:06d}.png" for s, n, k in kinds for i in range(n)]
    link_many(picture, places)
    places[0].with_name(f"._{places[0].name}").write_bytes(b"what a Mac leaves beside a file")
    done = typed("gopro", "--folder", folder)
    assert done.returncode == 0 and "nothing to do" in done.stdout, done.stderr
    places[0].unlink()
    assert fetch.wrong(ARCHIVES["GOPRO_Large.zip"], folder / "GOPRO_Large"), "one picture less is noticed"


# --- the facts ------------------------------------------------------------------------------------------------------


def test_the_facts_agree_with_each_other():
    assert {known.script for known in SETS.values()} == set(MINIATURES)
    for known in SETS.values():
        assert known.licence and known.citation and set(known.archives) <= set(ARCHIVES)
    for archive in ARCHIVES.values():
        assert archive.plain or archive.expected_unpacked and archive.contents
        assert all(url.startswith("http") and " " not in url for url in (*archive.mirrors, archive.page))
    pictures = {name: sum(numbers[0] for numbers in known.contents.values()) for name, known in ARCHIVES.items()}
    total = {name: sum(known.counts.values()) for name, known in SETS.items()}
    assert pictures["GOPRO_Large.zip"] == 2 * total["gopro"] and pictures["HIDE_dataset.zip"] == 2 * total["hide"]
    assert pictures["RealBlur.tar.gz"] == 2 * (total["realblur_j"] + total["realblur_r"])
    assert pictures["BSDS500-master.zip"] == total["bsds500"] and pictures["BlurryImages.zip"] == total["kohler"]
    for split in ("train", "test"):
        assert all(pictures[f"RealBlur_{k}_{split}_list.txt"] == SETS["realblur_j"].counts[split] for k in "JR")


@pytest.mark.parametrize("folder", [Path("data"), Path("elsewhere")], ids=str)
@pytest.mark.parametrize("script", MINIATURES)
def test_the_next_commands_are_commands(script, folder, small, published, tmp_path, capsys):
    """What a script tells to type next is understood by the command line of the library."""
    from tinymsg.cli import parser

    job = fetch._Job(script, fetch._parse(script, ["--folder", str(folder)]))
    for line in job.next_lines():
        words = shlex.split(line)
        assert words[:3] == ["python", "-m", "tinymsg"]
        args = parser().parse_args(words[3:])  # exits, and so fails, on what it does not know
        assert str(getattr(args, "root", None)) == str(folder) or f"{folder}/" in line


# --- what is special in one of them ---------------------------------------------------------------------------------


def test_gopro_blur_is_chosen_recorded_and_remembered(published, small, tmp_path, capsys):
    data, folder, main = published("gopro"), tmp_path / "data", small("gopro")
    chosen = []
    for options in (data.by_hand, ["--blur", "blur_gamma"], []):
        assert main("--folder", folder, *options) == 0
        chosen.append(json.loads((folder / "gopro.json").read_text())["choices"]["blur"])
        assert f"blurry pictures: {chosen[-1]}" in (said := capsys.readouterr().out) and f"--blur {chosen[-1]}" in said
    assert chosen == ["blur", "blur_gamma", "blur_gamma"]


def test_a_record_that_is_none(published, small, tmp_path, capsys):
    (tmp_path / "gopro.json").write_text("[1, 2]")
    assert small("gopro")("--folder", tmp_path, *published("gopro").by_hand) == 1
    assert "gopro.json" in capsys.readouterr().err and (tmp_path / "gopro.json").read_text() == "[1, 2]"


LISTS = {
    "short": (lambda text: "\n".join(text.splitlines()[:-1]), "3 instead of 4"),
    "crossed": (lambda text: text.replace("blur_1.png", "blur_2.png"), "line 2"),
    "R for J": (lambda text: text.replace("RealBlur-J", "RealBlur-R").replace("ECC", "BM3D_ECC"), "RealBlur-J: "),
    "page": (lambda text: "<html></html>", "1 instead of 4"),
    "unknown": (lambda text: text.replace("scene002", "scene099"), "scene099"),
}


@pytest.mark.parametrize(("change", "message"), LISTS.values(), ids=LISTS)
def test_realblur_lists_are_checked(published, small, tmp_path, capsys, change, message):
    data, path = published("realblur"), tmp_path / "RealBlur_J_test_list.txt"
    path.write_text(change(data.archives[path.name].read_text()))
    others = [file for name, file in data.archives.items() if name != path.name]
    assert small("realblur")("--folder", tmp_path / "data", "--from-archive", *others, "--lists", path) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_realblur_lists_of_the_training_pairs(published, small, tmp_path, monkeypatch, capsys):
    data, main, folder = published("realblur"), small("realblur"), tmp_path / "data"
    lists = [data.tree / f"RealBlur/RealBlur_{kind}_train_list.txt" for kind in "JR"]
    for path in lists:
        known = replace(ARCHIVES[path.name], sha256=None, contents={path.name: range(2, 3)})
        monkeypatch.setitem(ARCHIVES, path.name, known)
    assert main("--folder", folder, *data.by_hand) == 0
    assert main("--folder", folder, "--train", "--lists", *lists) == 0, capsys.readouterr().err
    assert contents(folder / "RealBlur") == contents(data.tree / "RealBlur")


def test_realblur_lists_have_known_checksums(published, tmp_path, capsys):
    arguments = ["--folder", tmp_path / "data", *published("realblur").by_hand]
    assert fetch.main("realblur", [*map(str, arguments)]) == 1
    assert "167cc8d37939" in capsys.readouterr().err


def test_reds_val_300_alone(published, small, tmp_path, capsys):
    data, folder = published("reds"), tmp_path / "data"
    files = [data.archives[name] for name in ("val_sharp.zip", "val_blur_jpeg.zip")]
    assert small("reds")("--folder", folder, "--only", "val-300", "--from-archive", *files) == 0
    assert "--sets reds_val300 --root" in capsys.readouterr().out and not (folder / "REDS/val/val_blur").exists()
    assert small("reds")("--folder", folder, "--only", "val", "--from-archive", data.archives["val_blur.zip"]) == 0


def test_levin_as_the_authors_publish_it(tmp_path, monkeypatch, capsys):
    tree, folder, tool = make_levin_mat(tmp_path / "tree"), tmp_path / "data", tmp_path / "bin/unrar"
    tool.parent.mkdir()
    monkeypatch.setenv("PATH", str(tool.parent))
    rar = tmp_path / "LevinEtalCVPR09Data.rar"
    rar.write_bytes(b"Rar!\x1a\x07\x00")
    arguments = ["--folder", str(folder), "--form", "mat", "--from-archive", str(rar)]
    assert fetch.main("levin", arguments) == 1
    assert "bsdtar" in capsys.readouterr().err
    code = f"import shutil, sys; shutil.copytree({str(tree)!r}, sys.argv[-1], dirs_exist_ok=True)"
    tool.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c {shlex.quote(code)} "$@"\n')
    tool.chmod(0o755)
    assert fetch.main("levin", arguments) == 0, capsys.readouterr().err
    assert len(list((folder / "LevinEtalCVPR09Data/Levin09blurdata").glob("*.mat"))) == 32
    assert capsys.readouterr().out.endswith(f"  python data_scripts/levin.py --form png --folder {folder}\n")
