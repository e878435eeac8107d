"""The miniatures as their authors would publish them: what the tests of the data scripts share."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import gdown  # noqa: F401
import pytest
from miniatures import MINIATURES, REALBLUR_FOLDERS, files_below, tar_tree, zip_tree

from tinymsg.datasets.facts import ARCHIVES, SETS
from tinymsg.datasets.layouts import DATASETS

SCRIPTS = Path(__file__).parents[1] / "data_scripts"
sys.path.insert(0, str(SCRIPTS))
import download  # noqa: E402
import fetch  # noqa: E402

COUNTS = {  # of the miniatures
    "gopro": {"train": 6, "test": 3},
    "hide": {"train": 3, "test": 4},
    "realblur_j": {"train": 2, "test": 4},
    "realblur_r": {"train": 2, "test": 4},
    "reds": {"test": 20},
    "reds_val300": {"test": 2},
}
PIXELS = {"bsds500": ((48, 32), (32, 48)), "kohler": ((40, 40),), "levin": (), "realblur": ()}
KOHLER = [f"GroundTruth_pngs_Image{i}.zip" for i in range(1, 5)]


@dataclass
class Published:
    """A miniature data set and the archives it is published as."""

    script: str
    tree: Path  # the unpacked tree, as it should lie below --folder
    archives: dict[str, Path] = field(default_factory=dict)

    @property
    def by_hand(self) -> list:
        return ["--from-archive", *self.archives.values()]

    def facts(self, mirrors: dict[str, tuple[str, ...]] | None = None) -> dict[str, dict]:
        """Fields of ARCHIVES, as small as the miniature is, without checksums, and from these mirrors."""
        facts = {}
        for name in self.archives:
            known = ARCHIVES[name]
            # What the miniature has, not what this module says: a pattern that matches nothing would be noticed
            found = {p: list((self.tree / known.into).glob(p.format(blur="blur"))) for p in known.contents}
            counts = {p: len(paths[0].read_text().splitlines() if known.plain else paths) for p, paths in found.items()}
            assert all(counts.values()), counts
            contents = {pattern: range(count, count + 1) for pattern, count in counts.items()}
            small = {"size": None, "unpacked": 10**6, "md5": None, "sha256": None, "contents": contents}
            facts[name] = small | {"pixels": PIXELS.get(self.script, ((48, 32),))}
            facts[name] |= {"mirrors": mirrors[name]} if mirrors and name in mirrors else {}
        return facts


def publish(script: str, place: Path, tree: Path | None = None) -> Published:
    """Make the archives of a data set, with the true names outside and inside."""
    tree, out = tree or MINIATURES[script](place / "tree"), place / "archives"
    reds = [(f"{kind}.zip", tree / "REDS", [f"val/{kind}"]) for kind in ("val_sharp", "val_blur", "val_blur_jpeg")]
    shots = [path.name for path in sorted((tree / "Kohler").glob("*.png"))]
    below = {
        "gopro": [("GOPRO_Large.zip", tree, ["GOPRO_Large"])],
        "hide": [("HIDE_dataset.zip", tree, ["HIDE_dataset"])],
        "realblur": [("RealBlur.tar.gz", tree / "RealBlur", [*REALBLUR_FOLDERS.values()])],  # no folder around it
        "reds": reds,
        "bsds500": [("BSDS500-master.zip", tree, ["BSDS500-master"])],
        "kohler": [("BlurryImages.zip", tree / "Kohler", shots)]
        + [(name, tree / "Kohler", [f"Image{i}"]) for i, name in enumerate(KOHLER, 1)],
        "levin": [("SelfDeblur-master.zip", tree, ["SelfDeblur-master"])],
        "kodak24": [("FFDNet-master.zip", tree, ["Kodak24"])],
    }[script]
    made = {name: (tar_tree if "tar" in name else zip_tree)(root, out / name, *parts) for name, root, parts in below}
    for path in sorted(tree.glob("RealBlur/*test_list.txt")):
        made[path.name] = Path(shutil.copy(path, out))
    return Published(script, tree, made)


_MADE: dict[str, Published] = {}


def _made(script: str, places: pytest.TempPathFactory) -> Published:
    if script not in _MADE:
        _MADE[script] = publish(script, places.mktemp(script))
    return _MADE[script]


@pytest.fixture
def published(tmp_path_factory):
    """published(script) -> Published, made once."""
    return partial(_made, places=tmp_path_factory)


@pytest.fixture(params=MINIATURES)
def data(request, published) -> Published:
    return published(request.param)


@pytest.fixture
def small(monkeypatch, tmp_path_factory):
    """small(script, **mirrors of archives) -> its main(), in this process, with the miniature's numbers."""
    monkeypatch.setattr(download, "RETRIES", 0)  # gdown would wait for seconds before each
    monkeypatch.setattr(sys.modules["gdown.download"], "CHUNK_SIZE", 64)  # miniatures have fewer bytes than its own

    def make(script: str, **mirrors: tuple[str, ...]) -> Callable[..., int]:
        for name, fields in _made(script, places=tmp_path_factory).facts(mirrors).items():
            monkeypatch.setitem(ARCHIVES, name, replace(ARCHIVES[name], **fields))
        for name in (name for name, known in SETS.items() if known.script == script and name in DATASETS):
            frames = range(2, 4) if SETS[name].frames else None
            known = replace(SETS[name], counts=COUNTS.get(name, SETS[name].counts), frames=frames)
            monkeypatch.setitem(SETS, name, known)
            monkeypatch.setitem(DATASETS, name, known)
        return lambda *arguments: fetch.main(script, [*map(str, arguments)])

    return make


def typed(script: str, *arguments) -> subprocess.CompletedProcess:
    """A script as a user runs it."""
    line = [sys.executable, str(SCRIPTS / f"{script}.py"), *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=300)


def small_process(data: Published, mirrors: dict[str, tuple[str, ...]], *arguments) -> subprocess.Popen:
    """The script of a data set with the miniature's archives, in a process of its own that can be killed."""
    code = f"""import sys
sys.path.insert(0, {str(SCRIPTS)!r})
import download, fetch
from dataclasses import replace
import gdown
download.RETRIES, sys.modules["gdown.download"].CHUNK_SIZE = 0, 1024
for name, fields in eval(sys.argv.pop(1)).items():
    fetch.ARCHIVES[name] = replace(fetch.ARCHIVES[name], **fields)
for name, counts in eval(sys.argv.pop(1)).items():
    fetch.SETS[name] = replace(fetch.SETS[name], counts=counts)
fetch.command({data.script!r})"""
    line = [sys.executable, "-c", code, repr(data.facts(mirrors)), repr(COUNTS), *map(str, arguments)]
    return subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by its name there, but for the hidden lock."""
    paths = (path for path in files_below(folder) if not path.name.endswith(".lock")) if folder.exists() else ()
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def pictures_of(data: Published) -> dict[str, bytes]:
    """What should lie below --folder: without Thumbs.db, and of RealBlur without the lists that nobody asked for."""
    found = contents(data.tree).items()
    return {name: content for name, content in found if not name.endswith(("Thumbs.db", "train_list.txt"))}


def mirrors(server, data: Published, *behaviours: str) -> dict[str, tuple[str, ...]]:
    """Mirrors of every archive on a local server, each behaving so."""
    return {name: tuple(f"{server.url}/{b}/{name}" for b in behaviours) for name in data.archives}
