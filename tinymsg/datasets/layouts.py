"""The paper's data sets on disk: which blurry picture belongs to which sharp one.

`find_pairs` reads each set in the layout of its own archive, as the scripts in data_scripts/ unpack it. Pairs are
matched by name, never by the order of two listings.
"""

import re
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

from ..data import Pair, picture_files
from .facts import SETS, DataSet

BLURS = ("blur", "blur_gamma")  # of GoPro: frames averaged as stored, or in linear light under a gamma of 2.2
REALBLUR = {
    "J": "RealBlur-J_ECC_IMCORR_centroid_itensity_ref",  # "itensity" is theirs
    "R": "RealBlur-R_BM3D_ECC_IMCORR_centroid_itensity_ref",
}


class _Absent(Exception):
    """What is missing and where it was looked for: the first half of a sentence."""


def find_pairs(
    name: str, root: str | Path = "data", split: str = "test", blur: str = "blur", complete: bool = True
) -> list[Pair]:
    """The pairs of a split, sorted by name.

    Args:
        name: of DATASETS.
        root: the folder that the data scripts fill (their --folder).
        split: train or test. REDS has no published test targets: its validation clips are "test" (or "val") here.
        blur: blur or blur_gamma, GoPro's choice; the other sets have one kind of blur.
        complete: False takes the pairs that are there; True insists on the published number.
    Raises: ValueError, one sentence: what is missing, where it was looked for, which script fetches it.
    """
    known = get_dataset(name)
    if split not in known.counts:
        raise ValueError(f"{known.title} has no split {split!r}; it has {', '.join(known.counts)}")
    if blur not in BLURS:
        raise ValueError(f"unknown blur {blur!r}; known: {', '.join(BLURS)}")
    if blur != "blur" and name != "gopro":
        raise ValueError(f"{known.title} has one kind of blur; {blur} is a choice of gopro alone")
    try:
        return _pairs(name, Path(root), split, blur, complete)
    except _Absent as absent:
        script = f"python data_scripts/{known.script}.py --folder {root}"
        if known.script == "realblur" and split == "train":
            script += " --train"  # its training lists are extra
        raise ValueError(f"{known.title}, {split}: {absent}; {script} fetches it") from None


def what_is_missing(name: str, root: Path, split: str, blur: str = "blur") -> str | None:
    """None if every published pair of a split is there, else what is not and where it was looked for."""
    try:
        _pairs(name, root, split, blur, complete=True)
    except (_Absent, ValueError) as problem:
        return str(problem)
    return None


def get_dataset(name: str) -> DataSet:
    """A registered data set."""
    if name in ("bsds500", "kodak24"):
        raise ValueError(f"{name} holds sharp pictures only, no pairs: train on bsds500 with --set content=FOLDER")
    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}; known: {', '.join(DATASETS)}")
    return DATASETS[name]


def _pairs(name: str, root: Path, split: str, blur: str, complete: bool) -> list[Pair]:
    """What find_pairs returns. Raises: _Absent; ValueError for a name that stands for two pairs."""
    known = DATASETS[name]
    try:
        pairs = sorted(FINDERS[name](root, split, blur))
    except _Absent:
        if not (pairs := sorted(_mirror(known.title.replace("-", "_"), root, split, blur))):
            raise
    lost = {pair: path for pair in pairs for path in (*pair.sharp_paths, pair.blurry) if not path.is_file()}
    there = [pair for pair in pairs if pair not in lost]
    if lost and (complete or not there):
        first = next(iter(lost.values()))
        raise _Absent(f"{len(lost)} of {len(pairs)} pairs lack a picture, the first: {first}")
    if (complete or not there) and len(there) != known.counts[split]:
        where = there[0].blurry.parent if there else "the folders that were found"
        raise _Absent(f"{len(there)} pairs instead of {known.counts[split]} (the first in {where})")
    frames = known.frames or range(1, 2)
    for pair in there if complete else []:
        if (found := len(pair.sharp_paths)) not in frames:
            raise _Absent(f"{found} sharp frames instead of {frames[0]} to {frames[-1]} belong to {pair.blurry}")
    if twice := next((a.name for a, b in pairwise(there) if a.name == b.name), None):
        raise ValueError(f"{known.title}, {split}: two pairs are named {twice}; move one away, below {root}")
    return there


# --- layouts ------------------------------------------------------------------------------------------------


def _folder(root: Path, *candidates: str) -> Path:
    """The first of some folders that is there."""
    for candidate in candidates:
        if (root / candidate).is_dir():
            return root / candidate
    raise _Absent(f"there is no {' or '.join(str(root / candidate) for candidate in candidates)}")


def _pictures(folder: Path) -> list[Path]:
    """The pictures in a folder that must be there."""
    if not folder.is_dir():
        raise _Absent(f"there is no {folder}")
    return picture_files(folder)


def _mirror(title: str, root: Path, split: str, blur: str) -> list[Pair]:
    """The mirrors of Restormer and MPRNet, as they unpack: input/NAME beside target/NAME, the sequence in the name."""
    places = [f"{title}/{split}", f"{split}/{title}"] + ([title] if split == "test" else [])
    for folder in (root / place for place in places if (root / place / "input").is_dir()):
        if blur != "blur":
            raise _Absent(f"{folder} is a flattened mirror, which holds blur and not {blur}")
        return [Pair(path.stem, folder / "target" / path.name, path) for path in _pictures(folder / "input")]
    return []


def _gopro(root: Path, split: str, blur: str) -> list[Pair]:
    folder = _folder(root, f"GOPRO_Large/{split}")
    sequences = sorted(path for path in folder.iterdir() if (path / blur).is_dir())
    if not sequences:
        raise _Absent(f"there is no SEQUENCE/{blur} below {folder}")
    return [
        Pair(f"{sequence.name}/{path.stem}", sequence / "sharp" / path.name, path)
        for sequence in sequences
        for path in _pictures(sequence / blur)
    ]


def _hide(root: Path, split: str, blur: str) -> list[Pair]:
    folder = _folder(root, "HIDE_dataset")
    parts = ("test/test-close-ups", "test/test-long-shot") if split == "test" else ("train",)
    return [
        Pair(f"{Path(part).name}/{path.stem}", folder / "GT" / path.name, path)
        for part in parts
        for path in _pictures(folder / part)
    ]


def _realblur(letter: str, root: Path, split: str, blur: str) -> list[Pair]:
    """By the official lists, one `gt_path blur_path` per line (the last without a line end)."""
    top = REALBLUR[letter]
    base = _folder(root, f"RealBlur/{top}", top).parent
    name = f"RealBlur_{letter}_{split}_list.txt"
    places = [folder / name for folder in dict.fromkeys((base, base / "datalist", root, root / "datalist"))]
    if not (path := next((place for place in places if place.is_file()), None)):
        raise _Absent(f"there is no official list {' or '.join(map(str, places))}")
    one_picture = re.compile(rf"(?:\S*/)?({top}/(\w+)/gt/gt_(\w+)\.\w+)\s+(?:\S*/)?({top}/\2/blur/blur_\3\.\w+)")
    pairs = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if found := one_picture.fullmatch(line.strip()):
            sharp, scene, picture, blurry = found.groups()
            pairs.append(Pair(f"{scene}/{picture}", base / sharp, base / blurry))
        elif line.strip():
            what = f"`gt_path blur_path` of one picture of RealBlur-{letter}"
            raise _Absent(f"line {number} of {path} is not {what}: {line[:200]!r}")
    return pairs


def _reds(side: str, ending: str, root: Path, split: str, blur: str) -> list[Pair]:
    """CCC/FFFFFFFF.png; `ending` keeps the frames whose number ends so (the 300 of the JPEG track: every tenth)."""
    blurry = _folder(root, f"REDS/val/{side}", f"REDS/{side}", f"val/{side}", side)
    sharp = _folder(root, "REDS/val/val_sharp", "REDS/val_sharp", "val/val_sharp", "val_sharp")
    clips = sorted(path for path in blurry.iterdir() if path.is_dir())
    return [
        Pair(f"{clip.name}/{path.stem}", sharp / clip.name / f"{path.stem}.png", path)
        for clip in clips
        for path in _pictures(clip)
        if path.stem.endswith(ending)
    ]


def _kohler(root: Path, split: str, blur: str) -> list[Pair]:
    """Blurry<i>_<k>.png, and Image<i>/Kernel<k>/GroundTruth<i>_<k>_<n>.png for each n-th frame of its exposure."""
    folder = _folder(root, "Kohler", "kohler", "Koehler", "BenchmarkECCV2012")
    blurry = folder / "BlurryImages" if (folder / "BlurryImages").is_dir() else folder
    pairs = []
    for image in range(1, 5):
        inner = Path(f"GroundTruth_pngs_Image{image}/Image{image}")
        sharp = folder / inner if (folder / inner).is_dir() else folder / inner.name
        for trajectory in range(1, 13):
            place, stem = sharp / f"Kernel{trajectory}", f"GroundTruth{image}_{trajectory}_"
            frames = sorted(place.glob(f"{stem}*.png"), key=lambda path: int(path.stem.rpartition("_")[2]))
            frames = frames or [place / f"{stem}1.png"]  # not there: to be named as missing
            pairs.append(Pair(f"{image}_{trajectory:02d}", tuple(frames), blurry / f"Blurry{image}_{trajectory}.png"))
    return pairs


def _levin(root: Path, split: str, blur: str) -> list[Pair]:
    """The PNG copy in SelfDeblur's repository, gray; the authors' own MATLAB files are not read."""
    folder = _folder(root, "SelfDeblur-master/datasets/levin", "levin")
    return [
        Pair(
            f"im{image}_kernel{kernel}", folder / "gt" / f"im{image}.png", folder / f"im{image}_kernel{kernel}_img.png"
        )
        for image in range(1, 5)
        for kernel in range(1, 9)
    ]


# How each set of pairs lies on the disk; facts.toml has the rest
FINDERS: dict[str, Callable[[Path, str, str], list[Pair]]] = {
    "gopro": _gopro,
    "hide": _hide,
    "realblur_j": partial(_realblur, "J"),
    "realblur_r": partial(_realblur, "R"),
    "reds": partial(_reds, "val_blur", ""),
    "reds_val300": partial(_reds, "val_blur_jpeg", "9"),
    "kohler": _kohler,
    "levin": _levin,
}
DATASETS: dict[str, DataSet] = {name: SETS[name] for name in FINDERS}
