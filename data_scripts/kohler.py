"""Koehler (2012): 48 shots of 4 pictures under 12 camera shakes, and the frames of each. Run: python data_scripts/kohler.py

Leaves data/Kohler/{Blurry<i>_<j>.png, Image<i>/Kernel<j>/GroundTruth<i>_<j>_<k>.png}: picture i, camera path j, frame k.
"""

import sys
from functools import partial
from pathlib import Path

from archive import NOT_STATED, Archive, DataSet
from fetch import command_line, run
from pictures import picture_size, unmatched, wrong_pictures, wrong_size

PLACE = "http://people.kyb.tuebingen.mpg.de/rolfk/BenchmarkECCV2012/"
NAMES = ("BlurryImages.zip", *(f"GroundTruth_pngs_Image{i}.zip" for i in range(1, 5)))
MIRRORS = {name: (PLACE + name,) for name in NAMES}
PAGES = ("https://people.kyb.tuebingen.mpg.de/rolfk/BenchmarkECCV2012",)
MD5 = {
    "BlurryImages.zip": "61ffb1434d93fca6c508976a7216d723",
    "GroundTruth_pngs_Image1.zip": "acb90b6d9bfdb4b2370e08a5fcb80e68",
    "GroundTruth_pngs_Image2.zip": "da440d3bf43b32bec0b7170ccd828f29",
    "GroundTruth_pngs_Image3.zip": "3a77c41c951367f35db52eb18496bbac",
    "GroundTruth_pngs_Image4.zip": "72ce9690c3ed1296358653396cf9576d",
}
UNPACKED = {
    name: 100_000_000 if name.startswith("Blurry") else 2_500_000_000 for name in NAMES
}  # not published; roughly
KERNELS = 12
FRAMES = range(198, 201)  # 199, but for seven shots


def missing_blurry(folder: Path) -> str | None:
    """None if the 48 shots are there."""
    root = folder / "Kohler"
    expected = {f"Blurry{i}_{j}.png" for i in range(1, 5) for j in range(1, KERNELS + 1)}
    problem = wrong_pictures(root, "Blurry*_*.png", len(expected))
    return problem or unmatched(expected, {path.name for path in root.glob("Blurry*.png")}, "expected shots of Koehler")


def missing_frames(folder: Path, image: int) -> str | None:
    """None if every shot of a picture has its frames, numbered without a gap and all of one size."""
    sizes = ()
    for j in range(1, KERNELS + 1):
        place, stem = folder / f"Kohler/Image{image}/Kernel{j}", f"GroundTruth{image}_{j}_"
        paths = {path.name: path for path in place.glob(f"{stem}*.png")}
        if len(paths) not in FRAMES:
            return f"{place} has {len(paths)} sharp frames, {FRAMES[0]} to {FRAMES[-1]} are published"
        sizes = sizes or (picture_size(min(paths.values())),)
        expected = {f"{stem}{k}.png" for k in range(1, len(paths) + 1)}
        problem = unmatched(expected, paths, f"expected frames of {place}") or wrong_size(sorted(paths.values()), sizes)
        if problem:
            return problem
    return None


def data_set() -> DataSet:
    """What to fetch."""
    checks = {NAMES[0]: missing_blurry} | {NAMES[i]: partial(missing_frames, image=i) for i in range(1, 5)}
    return DataSet(
        key="kohler",
        title="Koehler: 48 blurry shots, and 198 to 200 sharp frames of each",
        licence=NOT_STATED,
        citation="Koehler, Hirsch, Mohler, Schoelkopf, Harmeling: Recording and playback of camera shake: benchmarking blind "
        "deconvolution with a real-world database, ECCV 2012",
        archives=tuple(
            Archive(
                name, MIRRORS[name], "Kohler", checks[name], unpacked=UNPACKED[name], md5=MD5.get(name), pages=PAGES
            )
            for name in NAMES
        ),
        next_commands=("python -m tinymsg paper --sets kohler{root} --out runs/paper",),
        notes=("A restoration is scored against the sharp frame that it comes closest to",),
    )


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run(data_set, command_line(__doc__).parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
