"""GoPro (Nah 2017): 2103 training and 1111 test pairs of 1280x720. Run: python data_scripts/gopro.py [--blur blur_gamma]

Leaves data/GOPRO_Large/{train,test}/SEQUENCE/{blur,blur_gamma,sharp}/NNNNNN.png and the record data/gopro.json.
"""

import sys
from pathlib import Path

from archive import Archive, DataSet, Record
from fetch import command_line, run
from pictures import picture_paths, unmatched, wrong_pictures

MIRRORS = {
    "GOPRO_Large.zip": (
        "https://huggingface.co/datasets/snah/GOPRO_Large/resolve/main/GOPRO_Large.zip",
        "https://drive.google.com/file/d/1y4wvPdOG3mojpFCHTqLgriexhbjoWVkK/view",
    )
}
PAGES = ("https://seungjunnah.github.io/Datasets/gopro",)
SIZE = 9_500_000_000
PAIRS = {"train": 2103, "test": 1111}
PIXELS = ((1280, 720),)
BLURS = ("blur", "blur_gamma")


def missing(folder: Path, blur: str) -> str | None:
    """None if every pair of this kind of blur is there, else what is not."""
    for split, expected in PAIRS.items():
        place = folder / "GOPRO_Large" / split
        counts = (wrong_pictures(place, f"*/{kind}/*.png", expected, PIXELS) for kind in (blur, "sharp"))
        problem = next(filter(None, counts), None)
        blurry, sharp = (
            {f"{p.parts[-3]}/{p.name}" for p in picture_paths(place, f"*/{kind}/*.png")} for kind in (blur, "sharp")
        )
        problem = problem or unmatched(blurry, sharp, f"{blur} pictures of {split}")
        if problem:
            return problem
    return None


def data_set(blur: str, chosen: bool) -> DataSet:
    """What to fetch. chosen: whether somebody chose `blur`, or it is the default."""
    default = "the default: all published reference numbers assume it. --blur blur_gamma takes frames averaged under a gamma of 2.2"
    why = "as chosen" if chosen else default
    return DataSet(
        key="gopro",
        title="GoPro (GOPRO_Large): 2103 training and 1111 test pairs",
        licence="CC BY 4.0",
        citation="Nah, Kim, Lee: Deep multi-scale convolutional neural network for dynamic scene deblurring, CVPR 2017",
        archives=(
            Archive(
                "GOPRO_Large.zip",
                MIRRORS["GOPRO_Large.zip"],
                "GOPRO_Large",
                lambda folder: missing(folder, blur),
                size=SIZE,
                pages=PAGES,
            ),
        ),
        next_commands=(
            f"python -m tinymsg pack gopro{{root}} --blur {blur}",
            f"python -m tinymsg train --data gopro{{root}} --blur {blur} --profile full --out runs/gopro",
        ),
        choices={"blur": blur},
        notes=(f"blurry pictures: {blur} ({why})",),
    )


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = command_line(__doc__)
    parser.add_argument(
        "--blur",
        choices=BLURS,
        help="which blurry pictures will be used; "
        "recorded in gopro.json beside the data (default: what is recorded there, else blur)",
    )
    args = parser.parse_args(arguments)
    return run(lambda: _chosen(args.blur, args.folder), args)


def _chosen(blur: str | None, folder: Path) -> DataSet:
    recorded = Record(folder, "gopro").choices.get("blur")
    return data_set(blur or recorded or BLURS[0], chosen=bool(blur or recorded))


if __name__ == "__main__":
    sys.exit(main())
