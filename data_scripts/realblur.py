"""RealBlur-J and -R (Rim 2020): 3758 training and 980 test pairs of each, photographed. Run: python data_scripts/realblur.py

Leaves data/RealBlur/{J folder, R folder}/sceneNNN/{gt/gt_K.png,blur/blur_K.png} and the official lists beside them. The lists
are published in another repository than the pictures. The sizes of the pictures differ.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from archive import Archive, DataSet
from fetch import command_line, run
from pictures import picture_size, wrong_size

LISTS = "https://raw.githubusercontent.com/rimchang/SRN-Deblur/master/datalist/"
MIRRORS = {
    "RealBlur.tar.gz": (
        # Named in others' scripts as the file of the Drive folder below
        "https://drive.google.com/file/d/17v5Dj0M2WExgxJgsGpEWc-6UyhK1IWWK/view",
        "https://cgdata.postech.ac.kr/sharing/YhKdbtvD0",  # may be a page for people
    ),
    "RealBlur_J_test_list.txt": (
        LISTS + "RealBlur_J_test_list.txt",
        "https://raw.githubusercontent.com/rimchang/RSBlur/main/datalist/RealBlur_J_test_list.txt",
    ),
    "RealBlur_J_train_list.txt": (
        LISTS + "RealBlur_J_train_list.txt",
        "https://raw.githubusercontent.com/rimchang/RSBlur/main/datalist/RealBlur_J_train_list.txt",
    ),
    "RealBlur_R_test_list.txt": (LISTS + "RealBlur_R_test_list.txt",),
    "RealBlur_R_train_list.txt": (LISTS + "RealBlur_R_train_list.txt",),
}
PAGES = (
    "https://drive.google.com/drive/folders/1xUNAAVzLhNQuGriKTk1hrE-MT-H_56fq",
    "https://github.com/rimchang/RealBlur",
)
LIST_PAGES = ("https://github.com/rimchang/SRN-Deblur/tree/master/datalist",)
SIZE = 13_100_000_000
SHA256 = {
    "RealBlur_J_test_list.txt": "167cc8d37939fe3821331579018c8570d39464618aeb4f50429210bc8c2ba9ce",
    "RealBlur_J_train_list.txt": "918932c62eac4353f6f50811d93ebbd55f5fa83a2ffc804871321708dcc9362c",
}
PAIRS = {"test": 980, "train": 3758}
FOLDERS = {
    "J": "RealBlur-J_ECC_IMCORR_centroid_itensity_ref",  # "itensity" is theirs
    "R": "RealBlur-R_BM3D_ECC_IMCORR_centroid_itensity_ref",
}


def read_list(path: Path, kind: str) -> list[tuple[str, str]] | str:
    """(gt, blur) of each line, paths below RealBlur/; or what is wrong. The last line need not end in a newline."""
    pairs = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        names = line.split()
        if not names:
            continue
        if len(names) != 2 or not all(name.startswith(FOLDERS[kind] + "/") and ".." not in name for name in names):
            return f"line {number} of {path} is not a sharp and a blurry picture of RealBlur-{kind}"
        if names[0] != names[1].replace("/blur/blur_", "/gt/gt_"):
            return f"line {number} of {path} pairs {names[0]} with {names[1]}"
        pairs.append((names[0], names[1]))
    return pairs


def missing_list(folder: Path, kind: str, split: str) -> str | None:
    """None if the official list is there and has the published number of pairs."""
    path = folder / "RealBlur" / f"RealBlur_{kind}_{split}_list.txt"
    if not path.is_file():
        return f"{path} is not there"
    pairs = read_list(path, kind)
    if isinstance(pairs, str):
        return pairs
    return None if len(set(pairs)) == PAIRS[split] else f"{path} has {len(set(pairs))} of {PAIRS[split]} pairs"


def missing_pictures(folder: Path) -> str | None:
    """None if as many pairs as published are there, and the two of a pair have the same size."""
    for name in FOLDERS.values():
        root = folder / "RealBlur" / name
        sharp, blurry = (
            {path.relative_to(root).as_posix() for path in root.glob(f"*/{kind}/{kind}_*.png")}
            for kind in ("gt", "blur")
        )
        expected = sum(PAIRS.values())
        if len(sharp) != expected or len(blurry) != expected:
            return f"{root} has {len(sharp)} sharp and {len(blurry)} blurry pictures of {expected}"
        for gt in sorted(sharp):
            blur = gt.replace("gt/gt_", "blur/blur_")
            if blur not in blurry:
                return f"{root / gt} has no blurry partner"
            size = picture_size(root / gt)
            problem = wrong_size((root / gt,), ()) or wrong_size((root / blur,), (size,))
            if problem:
                return problem
    return None


def agreed(folder: Path, of_folder: Path, kinds_splits: list[tuple[str, str]]) -> str | None:
    """None if every picture that the lists below `of_folder` name is there below `folder`."""
    for kind, split in kinds_splits:
        path = of_folder / "RealBlur" / f"RealBlur_{kind}_{split}_list.txt"
        pairs = read_list(path, kind) if path.is_file() else []
        if isinstance(pairs, str):
            return pairs
        lost = [name for pair in pairs for name in pair if not (folder / "RealBlur" / name).is_file()]
        if lost:
            return f"{path.name} names {len(lost)} pictures that are not there, the first: {lost[0]}"
    return None


def data_set(folder: Path, splits: tuple[str, ...]) -> DataSet:
    """What to fetch. The lists come first: they are small, and say which pictures must be there."""
    chosen = [(kind, split) for split in splits for kind in FOLDERS]

    def pictures(place: Path) -> str | None:
        return missing_pictures(place) or agreed(place, folder, chosen)

    lists = []
    for kind, split in chosen:
        name = f"RealBlur_{kind}_{split}_list.txt"
        check: Callable[[Path], str | None] = partial(missing_list, kind=kind, split=split)
        lists.append(Archive(name, MIRRORS[name], "RealBlur", check, sha256=SHA256.get(name), pages=LIST_PAGES))
    return DataSet(
        key="realblur",
        title="RealBlur-J and RealBlur-R: 3758 training and 980 test pairs of each",
        licence="CC BY 4.0",
        citation="Rim, Lee, Won, Cho: Real-world blur dataset for learning and benchmarking deblurring algorithms, ECCV 2020",
        archives=(
            *lists,
            Archive("RealBlur.tar.gz", MIRRORS["RealBlur.tar.gz"], "RealBlur", pictures, size=SIZE, pages=PAGES),
        ),
        next_commands=("python -m tinymsg paper --sets realblur_j realblur_r{root} --out runs/paper",),
        notes=(
            "Published scores are of aligned pictures (intensity, then ECC homography); unaligned ones are some dB lower",
        ),
    )


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = command_line(__doc__)
    parser.add_argument(
        "--lists", type=Path, nargs="+", default=[], metavar="FILE", help="official lists that you fetched by hand"
    )
    parser.add_argument("--train", action="store_true", help="fetch the lists of the training pairs too")
    args = parser.parse_args(arguments)
    args.from_archive = [*args.from_archive, *args.lists]
    return run(lambda: data_set(args.folder, ("test", "train") if args.train else ("test",)), args)


if __name__ == "__main__":
    sys.exit(main())
