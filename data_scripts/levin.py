"""Levin (2009): 4 gray pictures of 255x255 under 8 camera shakes. Run: python data_scripts/levin.py [--form mat]

The default is a copy as PNG, which the library reads: data/SelfDeblur-master/datasets/levin/{im<i>_kernel<k>_img.png,
gt/im<i>.png, gt/kernel<k>.png}. The authors' own form is a .rar of MATLAB files, which needs a tool to unpack (bsdtar, unrar
or 7z) and leaves data/LevinEtalCVPR09Data/Levin09blurdata/im0<5..8>_flit0<k>.mat.
"""

import sys
from pathlib import Path

from archive import NOT_STATED, Archive, DataSet
from fetch import command_line, run
from pictures import picture_paths, unmatched, wrong_pictures

MIRRORS = {
    "SelfDeblur-master.zip": ("https://github.com/csdwren/SelfDeblur/archive/refs/heads/master.zip",),
    "LevinEtalCVPR09Data.rar": (
        "https://webee.technion.ac.il/people/anat.levin/papers/LevinEtalCVPR09Data.rar",
        "https://www.wisdom.weizmann.ac.il/~levina/papers/LevinEtalCVPR09Data.rar",  # reported dead
    ),
}
PAGES = {
    "png": ("https://github.com/csdwren/SelfDeblur/tree/master/datasets/levin",),
    "mat": ("https://webee.technion.ac.il/people/anat.levin",),
}
UNPACKED = 50_000_000
IMAGES, KERNELS = 4, 8
PIXELS = ((255, 255),)


def missing_png(folder: Path) -> str | None:
    """None if all 32 blurry pictures, the 4 sharp ones and the 8 kernels are there."""
    root = folder / "SelfDeblur-master/datasets/levin"
    expected = {f"im{i}_kernel{k}_img.png" for i in range(1, IMAGES + 1) for k in range(1, KERNELS + 1)}
    return (
        wrong_pictures(root, "im*_kernel*_img.png", IMAGES * KERNELS, PIXELS)
        or unmatched(expected, {path.name for path in picture_paths(root, "*.png")}, "expected pictures of Levin")
        or wrong_pictures(root, "gt/im*.png", IMAGES, PIXELS)
        or wrong_pictures(root, "gt/kernel*.png", KERNELS)
    )


def missing_mat(folder: Path) -> str | None:
    """None if all 32 MATLAB files are there."""
    root = folder / "LevinEtalCVPR09Data/Levin09blurdata"
    for i in range(5, 5 + IMAGES):
        for k in range(1, KERNELS + 1):
            path = root / f"im0{i}_flit0{k}.mat"
            if not path.is_file() or not path.read_bytes()[:6] == b"MATLAB":
                return f"{path} is not there, or not a MATLAB file"
    return None


def data_set(form: str) -> DataSet:
    """What to fetch: png or mat."""
    png = Archive(
        "SelfDeblur-master.zip",
        MIRRORS["SelfDeblur-master.zip"],
        "SelfDeblur-master",
        missing_png,
        unpacked=UNPACKED,
        only="datasets/levin",
        pages=PAGES["png"],
    )
    mat = Archive(
        "LevinEtalCVPR09Data.rar",
        MIRRORS["LevinEtalCVPR09Data.rar"],
        "LevinEtalCVPR09Data",
        missing_mat,
        unpacked=UNPACKED,
        only="Levin09blurdata",
        pages=PAGES["mat"],
    )
    copied = "The PNG form is a copy by Ren et al. (SelfDeblur, CVPR 2020); --form mat has the authors' own"
    return DataSet(
        key="levin",
        title="Levin 2009: 32 gray blurry pictures, 4 sharp ones, 8 kernels",
        licence=NOT_STATED,
        citation="Levin, Weiss, Durand, Freeman: Understanding and evaluating blind deconvolution algorithms, CVPR 2009",
        archives=(png,) if form == "png" else (mat,),
        next_commands=("python -m tinymsg paper --sets levin{root} --out runs/paper",)
        if form == "png"
        else ("python data_scripts/levin.py --form png --folder {folder}",),
        notes=(copied if form == "png" else "The library reads the PNG form, not these: fetch that too",),
    )


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = command_line(__doc__)
    parser.add_argument(
        "--form",
        choices=("png", "mat"),
        default="png",
        help="a copy as PNG, or the authors' .mat (default: %(default)s)",
    )
    args = parser.parse_args(arguments)
    return run(lambda: data_set(args.form), args)


if __name__ == "__main__":
    sys.exit(main())
