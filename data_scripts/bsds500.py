"""BSDS500 (Arbelaez 2011): 500 sharp natural photographs, 481x321 or upright. Run: python data_scripts/bsds500.py

Leaves data/BSDS500-master/BSDS500/data/images/{train,val,test}/NUMBER.jpg (and the rest of its repository).
"""

import sys
from pathlib import Path

from archive import NOT_STATED, Archive, DataSet
from fetch import command_line, run
from pictures import wrong_pictures

MIRRORS = {"BSDS500-master.zip": ("https://github.com/BIDS/BSDS500/archive/refs/heads/master.zip",)}
PAGES = ("https://github.com/BIDS/BSDS500",)
MD5 = {"BSDS500-master.zip": "7bfe17302a219367694200a61ce8256c"}
PLACE = "BSDS500-master/BSDS500/data/images"
UNPACKED = 120_000_000
IMAGES = {"train": 200, "val": 100, "test": 200}
PIXELS = ((481, 321), (321, 481))


def missing(folder: Path) -> str | None:
    """None if every photograph is there, else what is not."""
    place = folder / PLACE
    problems = (wrong_pictures(place, f"{split}/*.jpg", expected, PIXELS) for split, expected in IMAGES.items())
    return next(filter(None, problems), None)


def data_set() -> DataSet:
    """What to fetch."""
    return DataSet(
        key="bsds500",
        title="BSDS500: 200, 100 and 200 photographs for training, validation and test",
        licence=f"of the images {NOT_STATED}; offered for non-commercial research and education",
        citation="Arbelaez, Maire, Fowlkes, Malik: Contour detection and hierarchical image segmentation, TPAMI 2011",
        archives=(
            Archive(
                "BSDS500-master.zip",
                MIRRORS["BSDS500-master.zip"],
                "BSDS500-master",
                missing,
                unpacked=UNPACKED,
                md5=MD5.get("BSDS500-master.zip"),
                pages=PAGES,
            ),
        ),
        next_commands=(f"python -m tinymsg train --set content={{folder}}/{PLACE}/train --out runs/photos",),
        notes=("Sharp photographs only: blur is made while training",),
    )


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run(data_set, command_line(__doc__).parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
