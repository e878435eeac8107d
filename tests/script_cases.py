"""The miniatures as their authors would publish them: what the tests of the data scripts share."""

import importlib
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest
from miniatures import MINIATURES, REALBLUR_FOLDERS, files_below, tar_tree, zip_tree

SCRIPTS = Path(__file__).parents[1] / "data_scripts"
sys.path.insert(0, str(SCRIPTS))
import download  # noqa: E402

SMALL = {  # what each script expects, made as small as the miniatures are
    "gopro": {"PAIRS": {"train": 6, "test": 3}, "PIXELS": ((48, 32),), "SIZE": None},
    "hide": {"PAIRS": {"train": 3, "test": 4}, "PIXELS": ((48, 32),), "UNPACKED": 10**6},
    "realblur": {"PAIRS": {"train": 2, "test": 4}, "SHA256": {}, "SIZE": None},
    "reds": {
        "CLIPS": 2,
        "FRAMES": 10,
        "PIXELS": ((48, 32),),
        "SIZES": dict.fromkeys(("val_sharp.zip", "val_blur.zip", "val_blur_jpeg.zip")),
    },
    "bsds500": {"IMAGES": {"train": 2, "val": 1, "test": 2}, "PIXELS": ((48, 32), (32, 48)), "MD5": {}},
    "kohler": {
        "FRAMES": (2, 3),
        "MD5": {},
        "UNPACKED": {
            f"{name}.zip": 10**6 for name in ("BlurryImages", *(f"GroundTruth_pngs_Image{i}" for i in range(1, 5)))
        },
    },
    "levin": {"PIXELS": ((40, 40),)},
}


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
    out, below = (
        place / "archives",
        {
            "gopro": [("GOPRO_Large.zip", tree, ["GOPRO_Large"])],
            "hide": [("HIDE_dataset.zip", tree, ["HIDE_dataset"])],
            "realblur": [
                ("RealBlur.tar.gz", tree / "RealBlur", [*REALBLUR_FOLDERS.values()])
            ],  # without a folder around it
            "reds": [
                (f"{kind}.zip", tree / "REDS", [f"val/{kind}"]) for kind in ("val_sharp", "val_blur", "val_blur_jpeg")
            ],
            "bsds500": [("BSDS500-master.zip", tree, ["BSDS500-master"])],
            "kohler": [
                ("BlurryImages.zip", tree / "Kohler", [p.name for p in sorted((tree / "Kohler").glob("*.png"))]),
                *((f"GroundTruth_pngs_Image{i}.zip", tree / "Kohler", [f"Image{i}"]) for i in range(1, 5)),
            ],
            "levin": [("SelfDeblur-master.zip", tree, ["SelfDeblur-master"])],
        }[script],
    )
    made = {name: (tar_tree if "tar" in name else zip_tree)(root, out / name, *parts) for name, root, parts in below}
    for path in sorted(tree.glob("RealBlur/*test_list.txt")):
        made[path.name] = Path(shutil.copy(path, out))
    return Published(script, tree, made)


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """published(script) -> Published, made once."""
    return cache(lambda script: publish(script, tmp_path_factory.mktemp(script)))


@pytest.fixture(params=SMALL)
def data(request, published) -> Published:
    return published(request.param)


@pytest.fixture
def typed():
    """typed(script, *arguments, **changes) -> CompletedProcess: a script as a user runs it, with changed module constants."""
    return lambda *arguments, **changes: subprocess.run(
        command(*arguments, **changes), capture_output=True, text=True, timeout=300
    )


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


def command(script: str, *arguments, **changes) -> list[str]:
    """What to run: the script itself, or the script with some of its module constants changed."""
    if not changes:
        return [sys.executable, str(SCRIPTS / f"{script}.py"), *map(str, arguments)]
    code = f"""import ast, sys
sys.path.insert(0, {str(SCRIPTS)!r})
import download, {script} as script
download.WAITS = (0, 0)
vars(script).update(ast.literal_eval(sys.argv[1]))
sys.exit(script.main(sys.argv[2:]))"""
    return [sys.executable, "-c", code, repr(changes), *map(str, arguments)]


def program(path: Path, code: str) -> None:
    """Make a program of Python code; started by a shell, as a line #! takes no interpreter with a blank in its path."""
    path.with_suffix(".py").write_text(code)
    path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(path))}.py "$@"\n')
    path.chmod(0o755)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by its name there."""
    return (
        {path.relative_to(folder).as_posix(): path.read_bytes() for path in files_below(folder)}
        if folder.exists()
        else {}
    )


def pictures_of(data: Published) -> dict[str, bytes]:
    """What should lie below --folder: without Thumbs.db, and of RealBlur without the lists that nobody asked for."""
    return {
        name: content
        for name, content in contents(data.tree).items()
        if not name.endswith(("Thumbs.db", "train_list.txt"))
    }


def first_archive(data: Published) -> set[str]:
    """Names below --folder of what the first archive holds."""
    names = {"kohler": "Kohler/Blurry", "reds": "REDS/val/val_sharp/"}
    return {name for name in pictures_of(data) if name.startswith(names.get(data.script, ""))}


def mirrors(server, data: Published, *behaviours: str) -> dict:
    """The script's MIRRORS, of a local server, each behaving so."""
    ours = {name: tuple(f"{server.url}/{b}/{name}" for b in behaviours) for name in data.archives}
    return {"MIRRORS": importlib.import_module(data.script).MIRRORS | ours}


def describe(script: str, folder: Path):
    """The DataSet of a script, with its default choices."""
    arguments = {"gopro": ("blur", True), "reds": ("all",), "levin": ("png",), "realblur": (folder, ("test",))}
    return importlib.import_module(script).data_set(*arguments.get(script, ()))


def whole_names(script: str) -> list[str]:
    """Names below --folder of every picture of the real data set, in their true number."""
    splits = {"gopro": (("train", 2103), ("test", 1111)), "bsds500": (("train", 200), ("val", 100), ("test", 200))}
    shots = [(i, j) for i in range(1, 5) for j in range(1, 13)]
    hide = ["train"] * 6397 + ["test/test-close-ups"] * 1025 + ["test/test-long-shot"] * 1000
    levin, realblur = "SelfDeblur-master/datasets/levin", [(f"scene{i // 20:03d}", i % 20) for i in range(3758 + 980)]
    return {
        "gopro": lambda: [
            f"GOPRO_Large/{split}/GOPR{i % 7:04d}/{kind}/{i:06d}.png"
            for split, count in splits["gopro"]
            for kind in ("blur", "sharp")
            for i in range(count)
        ],
        "hide": lambda: [f"HIDE_dataset/{place}/{i}.png" for i, where in enumerate(hide) for place in (where, "GT")],
        "realblur": lambda: [
            f"RealBlur/{top}/{scene}/{kind}/{kind}_{k}.png"
            for top in REALBLUR_FOLDERS.values()
            for scene, k in realblur
            for kind in ("gt", "blur")
        ],
        "reds": lambda: [
            f"REDS/val/{kind}/{clip:03d}/{frame:08d}.{'jpg' if kind.endswith('jpeg') else 'png'}"
            for kind in ("val_sharp", "val_blur", "val_blur_jpeg")
            for clip in range(30)
            for frame in range(100)
        ],
        "bsds500": lambda: [
            f"BSDS500-master/BSDS500/data/images/{split}/{i}.jpg"
            for split, count in splits["bsds500"]
            for i in range(count)
        ],
        "kohler": lambda: (
            [f"Kohler/Blurry{i}_{j}.png" for i, j in shots]
            + [f"Kohler/Image{i}/Kernel{j}/GroundTruth{i}_{j}_{k}.png" for i, j in shots for k in range(1, 200)]
        ),
        "levin": lambda: (
            [f"{levin}/im{i}_kernel{k}_img.png" for i in range(1, 5) for k in range(1, 9)]
            + [f"{levin}/gt/im{i}.png" for i in range(1, 5)]
            + [f"{levin}/gt/kernel{k}.png" for k in range(1, 9)]
        ),
    }[script]()
