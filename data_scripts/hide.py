"""HIDE (Shen 2019): 6397 training and 2025 test pairs of people in motion, 1280x720. Run: python data_scripts/hide.py

Leaves data/HIDE_dataset/{train, test/test-close-ups, test/test-long-shot, GT}/NAME.png; GT holds the sharp one of each NAME.
"""

import sys
from pathlib import Path

from archive import NOT_STATED, Archive, DataSet
from fetch import command_line, run
from pictures import picture_paths, unmatched, wrong_pictures, wrong_size

MIRRORS = {
    "HIDE_dataset.zip": (
        "https://www.dropbox.com/s/04w3wqxcuin9dy8/HIDE_dataset.zip?dl=0",
        "https://www.dropbox.com/scl/fi/rvqdsxakk1t6qagnq1arh/HIDE_dataset.zip?rlkey=rwm7gdizn35sq8bv2dh1ja902&dl=0",
    )
}
PAGES = ("https://github.com/joanshen0508/HA_deblur",)
UNPACKED = 15_000_000_000  # no size is published; a copy of it that is gone again had at least 14.2 GB
PAIRS = {"train": 6397, "test": 2025}
PATTERNS = {"train": "train/*.png", "test": "test/test-*/*.png"}
PIXELS = ((1280, 720),)


def missing(folder: Path) -> str | None:
    """None if every blurry picture and the sharp one of its name are there, else what is not."""
    root = folder / "HIDE_dataset"
    sharp = {path.name for path in picture_paths(root, "GT/*.png")}
    for split, expected in PAIRS.items():
        names = {path.name for path in picture_paths(root, PATTERNS[split])}
        problem = wrong_pictures(root, PATTERNS[split], expected, PIXELS) or unmatched(
            names, sharp, f"{split} pictures of HIDE"
        )
        if problem:
            return problem
    return wrong_size(picture_paths(root, "GT/*.png"), PIXELS)


def data_set() -> DataSet:
    """What to fetch."""
    return DataSet(
        key="hide",
        title="HIDE: 6397 training and 2025 test pairs",
        licence=NOT_STATED,
        citation="Shen, Wang, Lu, Shen, Ling, Xu, Shao: Human-aware motion deblurring, ICCV 2019",
        archives=(
            Archive(
                "HIDE_dataset.zip", MIRRORS["HIDE_dataset.zip"], "HIDE_dataset", missing, unpacked=UNPACKED, pages=PAGES
            ),
        ),
        next_commands=("python -m tinymsg paper --sets hide{root} --out runs/paper",),
        notes=("HIDE is a test set here: models of the paper are trained on GoPro alone",),
    )


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run(data_set, command_line(__doc__).parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
