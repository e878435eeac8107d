"""Every data script on a miniature of its data set: by hand, from a server, interrupted, incomplete, and with the true numbers."""

import ast
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from bad_server import serve
from miniatures import (MINIATURES, REALBLUR_FOLDERS, files_below, link_many, make_levin_mat, sharp_pixels, tar_tree, write_picture,
                        zip_tree)  # fmt: skip

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "data_scripts"
sys.path.insert(0, str(SCRIPTS))
import download  # noqa: E402
import pictures  # noqa: E402

SMALL = {  # what each script expects, made as small as the miniatures are
    "gopro": {"PAIRS": {"train": 6, "test": 3}, "PIXELS": ((48, 32),), "SIZE": None},
    "hide": {"PAIRS": {"train": 3, "test": 4}, "PIXELS": ((48, 32),), "UNPACKED": 10**6},
    "realblur": {"PAIRS": {"train": 2, "test": 4}, "SHA256": {}, "SIZE": None},
    "reds": {"CLIPS": 2, "FRAMES": 10, "PIXELS": ((48, 32),), "SIZES": dict.fromkeys(("val_sharp.zip", "val_blur.zip", "val_blur_jpeg.zip"))},
    "bsds500": {"IMAGES": {"train": 2, "val": 1, "test": 2}, "PIXELS": ((48, 32), (32, 48)), "MD5": {}},
    "kohler": {"FRAMES": (2, 3), "MD5": {}, "UNPACKED": {f"{name}.zip": 10**6 for name in
               ("BlurryImages", *(f"GroundTruth_pngs_Image{i}" for i in range(1, 5)))}},
    "levin": {"PIXELS": ((40, 40),)},
}  # fmt: skip


@dataclass
class Published:
    """A miniature data set and the archives it is published as."""

    script: str
    tree: Path  # the unpacked tree, as it should lie below --folder
    archives: dict[str, Path] = field(default_factory=dict)

    @property
    def by_hand(self) -> list[str]:
        return ["--from-archive", *map(str, self.archives.values())]


def publish(script: str, place: Path, tree: Path | None = None) -> Published:
    """Make the archives of a data set, with the true names outside and inside."""
    tree = tree or MINIATURES[script](place / "tree")
    out, below = place / "archives", {
        "gopro": [("GOPRO_Large.zip", tree, ["GOPRO_Large"])],
        "hide": [("HIDE_dataset.zip", tree, ["HIDE_dataset"])],
        "realblur": [("RealBlur.tar.gz", tree / "RealBlur", [*REALBLUR_FOLDERS.values()])],  # without a folder around it
        "reds": [(f"{kind}.zip", tree / "REDS", [f"val/{kind}"]) for kind in ("val_sharp", "val_blur", "val_blur_jpeg")],
        "bsds500": [("BSDS500-master.zip", tree, ["BSDS500-master"])],
        "kohler": [("BlurryImages.zip", tree / "Kohler", [p.name for p in sorted((tree / "Kohler").glob("*.png"))]),
                   *((f"GroundTruth_pngs_Image{i}.zip", tree / "Kohler", [f"Image{i}"]) for i in range(1, 5))],
        "levin": [("SelfDeblur-master.zip", tree, ["SelfDeblur-master"])],
    }[script]  # fmt: skip
    made = {name: (tar_tree if "tar" in name else zip_tree)(root, out / name, *parts) for name, root, parts in below}
    for path in sorted(tree.glob("RealBlur/*test_list.txt")):
        made[path.name] = Path(shutil.copy(path, out))
    return Published(script, tree, made)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """published(script): made once."""
    made = {}
    return lambda script: made.setdefault(script, None) or made.update({script: publish(script, tmp_path_factory.mktemp(script))}) or made[script]


@pytest.fixture(params=SMALL)
def data(request, published) -> Published:
    return published(request.param)


@pytest.fixture
def typed():
    """typed(script, *arguments, **changes) -> CompletedProcess: a script as a user runs it, with changed module constants."""
    return lambda *arguments, **changes: subprocess.run(command(*arguments, **changes), capture_output=True, text=True, timeout=60)


def command(script: str, *arguments, **changes) -> list[str]:
    if not changes:
        return [sys.executable, str(SCRIPTS / f"{script}.py"), *map(str, arguments)]
    code = (f"import ast, sys; sys.path.insert(0, {str(SCRIPTS)!r}); import download, {script} as script; download.WAITS = (0, 0)\n"
            "vars(script).update(ast.literal_eval(sys.argv[1])); sys.exit(script.main(sys.argv[2:]))")  # fmt: skip
    assert ast.literal_eval(repr(changes)) == changes
    return [sys.executable, "-c", code, repr(changes), *map(str, arguments)]


@pytest.fixture
def small(monkeypatch):
    """small(script, **changes) -> its main(), in this process, with the miniature's numbers."""
    monkeypatch.setattr(download, "WAITS", (0, 0))

    def make(script: str, **changes):
        module = importlib.import_module(script)
        for name, value in (SMALL[script] | changes).items():
            assert hasattr(module, name)
            monkeypatch.setattr(module, name, value)
        return lambda *arguments: module.main([*map(str, arguments)])

    return make


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files_below(folder)} if folder.exists() else {}


def pictures_of(data: Published) -> dict[str, bytes]:
    """What should lie below --folder: without Thumbs.db, and of RealBlur without the lists that nobody asked for."""
    return {name: content for name, content in contents(data.tree).items() if not name.endswith(("Thumbs.db", "train_list.txt"))}


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
    assert done.stdout.splitlines()[-2 if data.script in ("gopro", "realblur", "reds") else -1].startswith("  python -m tinymsg ")
    before = {path: path.stat().st_mtime_ns for path in files_below(folder)}
    again = typed(data.script, "--folder", folder, **SMALL[data.script])
    assert again.returncode == 0 and "nothing to do" in again.stdout and "Licence" not in again.stdout
    assert before == {path: path.stat().st_mtime_ns for path in files_below(folder)}


def test_a_miniature_is_not_the_published_data(data, typed, tmp_path):
    done = typed(data.script, "--folder", tmp_path / "data", *data.by_hand, "--any-checksum")
    assert done.returncode == 1 and done.stdout
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert any(number in done.stderr for number in ("2103", "6397", "980", "3000", "200", "48", "255x255")), done.stderr
    assert contents(tmp_path / "data") in ({}, {"kohler.json": contents(tmp_path / "data").get("kohler.json")}) or data.script == "kohler"


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
    renamed = [Path(shutil.copy(path, tmp_path / (f"{name} (1)" if i == 0 else name)))
               for i, (name, path) in enumerate(sorted(data.archives.items(), key=lambda item: item[0].endswith(".txt")))]  # fmt: skip
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
    victim = next(p for p in files_below(folder) if p.suffix in (".png", ".jpg") and p.relative_to(folder).as_posix() in first_archive(data))
    victim.unlink()
    before = contents(folder)
    assert main("--folder", folder, "--from-archive", other) == 1
    error = capsys.readouterr().err
    assert f"is not the {name} of before" in error and "--any-checksum takes the new one" in error
    assert contents(folder) == before
    assert main("--folder", folder, "--from-archive", other, "--any-checksum") == 0
    assert victim.is_file(), "and a picture that was lost is back, beside those that were there"


def first_archive(data: Published) -> set[str]:
    """Names below --folder of what the first archive holds."""
    names = {"kohler": "Kohler/Blurry", "reds": "REDS/val/val_sharp/"}
    return {name for name in pictures_of(data) if name.startswith(names.get(data.script, ""))}


# --- from a server -------------------------------------------------------------------------------------------------------


def mirrors(server, data: Published, *behaviours: str) -> dict:
    ours = {name: tuple(f"{server.url}/{b}/{name}" for b in behaviours) for name in data.archives}
    return {"MIRRORS": importlib.import_module(data.script).MIRRORS | ours}


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
    with serve({name: path.read_bytes() for name, path in data.archives.items()}) as server:
        changes = SMALL[script] | mirrors(server, data, "good")
        changes["MIRRORS"][name] = (f"{server.url}/waits/{name}",)
        process = subprocess.Popen(command(script, "--folder", folder, **changes), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        part, half = folder / f"{name}.part", data.archives[name].stat().st_size // 2
        deadline = time.monotonic() + 30
        while not (("waits", None) in server.seen and (stop == signal.SIGKILL or part.exists())):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        time.sleep(0.2)
        process.send_signal(stop)
        _, error = process.communicate(timeout=30)
        assert process.returncode == (-9 if stop == signal.SIGKILL else 130)
        assert stop == signal.SIGKILL or "stopped; the next run goes on from here" in error
        assert not any(path.name.startswith(".unpacking") for path in folder.iterdir())
        have = part.stat().st_size if part.exists() else 0
        assert stop == signal.SIGKILL or have == half
        server.go_on.set()
        done = typed(script, "--folder", folder, **changes)
        assert done.returncode == 0, done.stderr
        assert server.seen[-1] == ("waits", f"bytes={have}-" if have else None)
    assert {name: content for name, content in contents(folder).items() if name in pictures_of(data)} == pictures_of(data)


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


def test_killed_while_unpacking(published, small, tmp_path):
    """What a killed run leaves does not disturb the next one."""
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


def whole(script: str, picture: Path, folder: Path) -> list[Path]:
    """The names of the whole data set."""
    if script == "gopro":
        return [folder / f"GOPRO_Large/{split}/GOPR{i % 7:04d}/{kind}/{i:06d}.png" for split, n in (("train", 2103), ("test", 1111))
                for kind in ("blur", "sharp") for i in range(n)]  # fmt: skip
    if script == "hide":
        places = ["train"] * 6397 + ["test/test-close-ups"] * 1025 + ["test/test-long-shot"] * 1000
        return [folder / "HIDE_dataset" / place / f"{i}.png" for i, where in enumerate(places) for place in (where, "GT")]
    if script == "reds":
        return [folder / f"REDS/val/{kind}/{c:03d}/{f:08d}.{'jpg' if 'jpeg' in kind else 'png'}"
                for kind in ("val_sharp", "val_blur", "val_blur_jpeg") for c in range(30) for f in range(100)]  # fmt: skip
    if script == "realblur":
        return [folder / "RealBlur" / top / f"scene{i // 20:03d}/{kind}/{kind}_{i % 20}.png" for top in REALBLUR_FOLDERS.values()
                for i in range(4738) for kind in ("gt", "blur")]  # fmt: skip
    if script == "bsds500":
        return [folder / f"BSDS500-master/BSDS500/data/images/{split}/{i}.jpg" for split, n in (("train", 200), ("val", 100), ("test", 200))
                for i in range(n)]  # fmt: skip
    if script == "kohler":
        return [folder / f"Kohler/Image{i}/Kernel{j}/GroundTruth{i}_{j}_{k}.png" for i in range(1, 5) for j in range(1, 13) for k in range(1, 200)
                ] + [folder / f"Kohler/Blurry{i}_{j}.png" for i in range(1, 5) for j in range(1, 13)]  # fmt: skip
    root = folder / "SelfDeblur-master/datasets/levin"
    return [root / f"im{i}_kernel{k}_img.png" for i in range(1, 5) for k in range(1, 9)] + [root / f"gt/im{i}.png" for i in range(1, 5)] + [
        root / f"gt/kernel{k}.png" for k in range(1, 9)]  # fmt: skip


@pytest.mark.parametrize("script", SMALL)
def test_the_published_numbers_as_typed(script, typed, tmp_path):
    """The script without any change, on a tree of the true counts and sizes: one flat picture under thousands of names."""
    w, h = {"bsds500": (481, 321), "levin": (255, 255), "kohler": (800, 800)}.get(script, (1280, 720))
    picture = tmp_path / ("a.jpg" if script == "bsds500" else "a.png")
    write_picture(picture, np.full((h, w, 3), 90, np.uint8))
    names = whole(script, picture, tmp_path / "data")
    link_many(picture, names)
    if script == "realblur":
        for kind, top in REALBLUR_FOLDERS.items():
            lines = (f"{top}/scene{i // 20:03d}/gt/gt_{i % 20}.png {top}/scene{i // 20:03d}/blur/blur_{i % 20}.png " for i in range(980))
            (tmp_path / f"data/RealBlur/RealBlur_{kind}_test_list.txt").write_text("\n".join(lines))
    done = typed(script, "--folder", tmp_path / "data")
    assert done.returncode == 0, done.stderr
    assert "nothing to do" in done.stdout
    names[0].unlink()
    module = importlib.import_module(script)
    problem = next(filter(None, (a.missing(tmp_path / "data") for a in describe(module, tmp_path / "data").archives)))
    assert problem, "one picture less is noticed"


def describe(module, folder: Path):
    arguments = {"gopro": ("blur", True), "reds": ("all",), "levin": ("png",), "realblur": (folder, ("test",))}
    return module.data_set(*arguments.get(module.__name__, ()))


@pytest.mark.parametrize("script", SMALL)
def test_every_script_states_its_sources(script):
    module = importlib.import_module(script)
    data = describe(module, Path("data"))
    assert data.key == script and data.licence and data.citation and data.title
    for archive in data.archives:
        assert archive.mirrors == module.MIRRORS[archive.name] and archive.pages
        assert all(url.startswith("http") and (" " not in url) and download.direct_url(url) for url in archive.mirrors)
    text = (SCRIPTS / f"{script}.py").read_text()
    last = text.index("\n\n\ndef ")
    assert "http" not in text[last:], "every address stands among the constants at the top"


# --- what is special in one of them --------------------------------------------------------------------------------------


def test_gopro_blur_is_chosen_recorded_and_remembered(published, small, tmp_path, capsys):
    data, folder = published("gopro"), tmp_path / "data"
    main = small("gopro")
    assert main("--folder", folder, *data.by_hand) == 0
    said = capsys.readouterr().out
    assert "blurry pictures: blur (the default: all published reference numbers assume it" in said and "--blur blur" in said
    chosen = lambda: json.loads((folder / "gopro.json").read_text())["choices"]  # noqa: E731
    assert chosen() == {"blur": "blur"}
    assert main("--folder", folder, "--blur", "blur_gamma") == 0
    assert "choice changed: blur blur -> blur_gamma" in capsys.readouterr().out and chosen() == {"blur": "blur_gamma"}
    assert main("--folder", folder) == 0
    assert "blurry pictures: blur_gamma (as chosen)" in capsys.readouterr().out and chosen() == {"blur": "blur_gamma"}


def test_a_record_that_is_none(published, small, tmp_path, capsys):
    (tmp_path / "gopro.json").write_text("[1, 2]")
    assert small("gopro")("--folder", tmp_path, *published("gopro").by_hand) == 1
    assert "gopro.json is not a record of this script" in capsys.readouterr().err
    assert (tmp_path / "gopro.json").read_text() == "[1, 2]"


@pytest.mark.parametrize(("change", "message"), [
    (lambda text: "\n".join(text.splitlines()[:-1]), "has 3 of 4 pairs"),
    (lambda text: text.replace("blur_1.png", "blur_2.png"), "pairs RealBlur-J"),
    (lambda text: text.replace("RealBlur-J", "RealBlur-R").replace("ECC", "BM3D_ECC"), "not a sharp and a blurry picture of RealBlur-J"),
    (lambda text: "<html></html>", "line 1"),
    (lambda text: text.replace("scene002", "scene099"), "names 4 pictures that are not there"),
], ids=["short", "crossed", "R for J", "page", "unknown pictures"])  # fmt: skip
def test_realblur_lists_are_checked(published, small, tmp_path, capsys, change, message):
    data, folder = published("realblur"), tmp_path / "data"
    path = tmp_path / "RealBlur_J_test_list.txt"
    path.write_text(change(data.archives[path.name].read_text()))
    others = [file for name, file in data.archives.items() if name != path.name]
    assert small("realblur")("--folder", folder, "--from-archive", *others, "--lists", path) == 1
    assert message in capsys.readouterr().err
    assert not [name for name in contents(folder) if name.endswith(".png")]


def test_realblur_lists_of_the_training_pairs(published, small, tmp_path):
    data, folder = published("realblur"), tmp_path / "data"
    lists = [data.tree / f"RealBlur/RealBlur_{kind}_train_list.txt" for kind in "JR"]
    assert small("realblur")("--folder", folder, *data.by_hand) == 0
    assert small("realblur")("--folder", folder, "--train", "--lists", *lists) == 0
    assert contents(folder / "RealBlur") == contents(data.tree / "RealBlur")


def test_realblur_lists_have_known_checksums(published, small, tmp_path, capsys):
    data, module = published("realblur"), importlib.import_module("realblur")
    assert small("realblur", SHA256=module.SHA256)("--folder", tmp_path / "data", *data.by_hand) == 1
    assert "instead of 167cc8d37939" in capsys.readouterr().err


def test_reds_val_300_alone(published, small, tmp_path, capsys):
    data, folder = published("reds"), tmp_path / "data"
    files = [data.archives[name] for name in ("val_sharp.zip", "val_blur_jpeg.zip")]
    assert small("reds")("--folder", folder, "--only", "val-300", "--from-archive", *files) == 0
    said = capsys.readouterr().out
    assert "pack reds_val300" in said and "pack reds " not in said
    assert len(list((folder / "REDS/val/val_blur_jpeg").glob("*/*9.jpg"))) == 2 and not (folder / "REDS/val/val_blur").exists()
    assert small("reds")("--folder", folder, "--only", "val", "--from-archive", data.archives["val_blur.zip"]) == 0


def test_levin_as_the_authors_publish_it(small, tmp_path, monkeypatch, capsys):
    tree = make_levin_mat(tmp_path / "tree")
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    rar, folder = tmp_path / "LevinEtalCVPR09Data.rar", tmp_path / "data"
    rar.write_bytes(b"Rar!\x1a\x07\x00")
    assert small("levin")("--folder", folder, "--form", "mat", "--from-archive", rar) == 1
    assert "none of bsdtar, unrar, 7z, 7zz is installed" in capsys.readouterr().err
    (tmp_path / "bin/unrar").write_text(f"#!{sys.executable}\nimport shutil, sys\nshutil.copytree({str(tree)!r}, sys.argv[-1], dirs_exist_ok=True)\n")
    os.chmod(tmp_path / "bin/unrar", 0o755)
    assert small("levin")("--folder", folder, "--form", "mat", "--from-archive", rar) == 0
    assert len(list((folder / "LevinEtalCVPR09Data/Levin09blurdata").glob("*.mat"))) == 32


@pytest.mark.parametrize(("name", "options"), [("a.png", {}), ("a.jpg", {}), ("b.jpg", {"progressive": True}), ("c.jpg", {"exif": b"Exif\0\0" + bytes(3000)})])
def test_picture_sizes_from_the_header(tmp_path, name, options):
    from PIL import Image

    Image.new("RGB", (37, 19)).save(tmp_path / name, **options)
    assert pictures.picture_size(tmp_path / name) == (37, 19)
    whole_file = (tmp_path / name).read_bytes()
    for length in (0, 1, 3, 10, 20):
        (tmp_path / name).write_bytes(whole_file[:length])
        assert pictures.picture_size(tmp_path / name) is None
