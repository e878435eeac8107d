"""REDS validation (Nah 2019): 30 clips of 100 frames, 1280x720. Run: python data_scripts/reds.py [--only val|val-300]

Leaves data/REDS/val/{val_sharp,val_blur}/CCC/FFFFFFFF.png and val_blur_jpeg/CCC/FFFFFFFF.jpg. The "REDS val-300" of the
literature is every tenth frame (those that end in 9) of val_blur_jpeg, not of val_blur.
"""

import sys
from functools import partial
from pathlib import Path

from archive import Archive, DataSet
from fetch import command_line, run
from pictures import picture_paths, unmatched, wrong_pictures

MIRRORS = {
    "val_sharp.zip": (
        "https://huggingface.co/datasets/snah/REDS/resolve/main/val_sharp.zip",
        "https://drive.google.com/file/d/1MGeObVQ1-Z29f-myDP7-8c3u0_xECKXq/view",
    ),
    "val_blur.zip": (
        "https://huggingface.co/datasets/snah/REDS/resolve/main/val_blur.zip",
        "https://drive.google.com/file/d/1N8z2yD0GDWmh6U4d4EADERtcUgDzGrHx/view",
    ),
    "val_blur_jpeg.zip": (
        "https://huggingface.co/datasets/snah/REDS/resolve/main/val_blur_jpeg.zip",
        "https://drive.google.com/file/d/1EqQljcGMcm5oCr71KpMfXREPXV3lpMGW/view",
    ),
}
PAGES = ("https://seungjunnah.github.io/Datasets/reds",)
SIZES = {"val_sharp.zip": 4_270_000_000, "val_blur.zip": 3_540_000_000, "val_blur_jpeg.zip": 145_000_000}
CLIPS, FRAMES = 30, 100
PIXELS = ((1280, 720),)
NEEDS = {
    "val": ("val_sharp", "val_blur"),
    "val-300": ("val_sharp", "val_blur_jpeg"),
    "all": ("val_sharp", "val_blur", "val_blur_jpeg"),
}


def missing(folder: Path, kind: str) -> str | None:
    """None if every frame of every clip is there (and, of the JPEGs, every tenth that makes val-300), else what is not."""
    place, suffix = folder / "REDS/val" / kind, "jpg" if kind == "val_blur_jpeg" else "png"
    problem = wrong_pictures(place, f"*/*.{suffix}", CLIPS * FRAMES, PIXELS)
    names = {f"{path.parent.name}/{path.stem}" for path in picture_paths(place, f"*/*.{suffix}")}
    expected = {f"{clip:03d}/{frame:08d}" for clip in range(CLIPS) for frame in range(FRAMES)}
    problem = problem or unmatched(expected, names, f"expected frames of {kind}")
    if problem or suffix == "png":
        return problem
    ninth, wanted = len(picture_paths(place, "*/*9.jpg")), CLIPS * (FRAMES // 10)
    return None if ninth == wanted else f"{place} has {ninth} of the {wanted} frames that make val-300"


def data_set(only: str) -> DataSet:
    """What to fetch. only: one of NEEDS."""
    archives = tuple(
        Archive(
            f"{kind}.zip",
            MIRRORS[f"{kind}.zip"],
            f"REDS/val/{kind}",
            partial(missing, kind=kind),
            size=SIZES[f"{kind}.zip"],
            pages=PAGES,
        )
        for kind in NEEDS[only]
    )
    sets = " ".join(
        name for name, kind in (("reds", "val_blur"), ("reds_val300", "val_blur_jpeg")) if kind in NEEDS[only]
    )
    return DataSet(
        key="reds",
        title="REDS, validation: 3000 frames; val-300: 300 of them as JPEG",
        licence="CC BY 4.0",
        citation="Nah, Baik, Hong, Moon, Son, Timofte, Lee: NTIRE 2019 challenge on video deblurring and super-resolution: "
        "dataset and study, CVPR workshops 2019",
        archives=archives,
        next_commands=(f"python -m tinymsg paper --sets {sets}{{root}} --out runs/paper",),
        notes=("Which part of REDS the paper used is not known; val-300 is val_blur_jpeg, frames ending in 9",),
    )


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = command_line(__doc__)
    parser.add_argument(
        "--only", choices=NEEDS, default="all", help="val: 7.8 GB; val-300: 4.4 GB (default: %(default)s, 8 GB)"
    )
    args = parser.parse_args(arguments)
    return run(lambda: data_set(args.only), args)


if __name__ == "__main__":
    sys.exit(main())
