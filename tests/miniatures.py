"""Miniature data sets with the true folders, file names, lists and quirks, for tests of everything that reads them.

Each `make_*` writes the unpacked tree below a folder, as the data scripts leave it below data/, and returns that
folder. Pictures are tiny, and a blurry one really is its sharp one blurred; the same call gives the same bytes.
`zip_tree` and `tar_tree` make the archives that the scripts download.
"""

import os
import tarfile
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

REALBLUR_FOLDERS = {
    "J": "RealBlur-J_ECC_IMCORR_centroid_itensity_ref",
    "R": "RealBlur-R_BM3D_ECC_IMCORR_centroid_itensity_ref",
}


@cache
def sharp_pixels(seed: int, size: tuple[int, int], channels: int = 3) -> np.ndarray:
    """(h, w, channels) uint8: rectangles of random colours. `size` is (w, h), as everywhere below."""
    rng = np.random.default_rng(seed)
    w, h = size
    pixels = np.full((h, w, channels), rng.integers(0, 256, channels), np.uint8)
    for _ in range(12):
        top, left = rng.integers(0, h), rng.integers(0, w)
        tall, wide = rng.integers(2, h // 2 + 3), rng.integers(2, w // 2 + 3)
        pixels[top : top + tall, left : left + wide] = rng.integers(0, 256, channels)
    return pixels


def blurred(pixels: np.ndarray, length: int = 5) -> np.ndarray:
    """The same, averaged over `length` horizontal shifts."""
    shifted = [
        np.roll(pixels.astype(np.float32), shift, axis=1) for shift in range(-(length // 2), length - length // 2)
    ]
    return np.mean(shifted, axis=0).round().astype(np.uint8)


def write_picture(path: Path, pixels: np.ndarray) -> None:
    """A PNG or JPEG; one channel is written as gray."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"quality": 90} if path.suffix == ".jpg" else {"compress_level": 1}
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(path, **options)


def make_gopro(folder: Path, train: int = 2, test: int = 1, frames: int = 3, size: tuple[int, int] = (48, 32)) -> Path:
    """GOPRO_Large/{train,test}/SEQUENCE/{blur,blur_gamma,sharp}/NNNNNN.png, with `frames` pairs in each sequence.

    As in the real one, the same names come back in different sequences, and blur differs from blur_gamma.
    """
    for split, sequences, first in (("train", train, 372), ("test", test, 384)):
        for sequence in range(sequences):
            place = folder / "GOPRO_Large" / split / f"GOPR0{first + sequence}_07_0{sequence % 10}"
            for frame in range(frames):
                sharp = sharp_pixels(first + 100 * sequence + frame, size)
                name = f"{47 + frame:06d}.png"
                write_picture(place / "sharp" / name, sharp)
                write_picture(place / "blur" / name, blurred(sharp))
                write_picture(place / "blur_gamma" / name, blurred(sharp, 7))
    return folder


def make_hide(
    folder: Path, train: int = 3, close_ups: int = 2, long_shot: int = 2, size: tuple[int, int] = (48, 32)
) -> Path:
    """HIDE_dataset/{train/, test/test-close-ups/, test/test-long-shot/, GT/}: all sharp ones lie in GT."""
    root = folder / "HIDE_dataset"
    names = {
        "train": [f"{i}fromGOPR0950.png" for i in range(train)],
        "test/test-close-ups": [f"{i}fromGOPR1092.png" for i in range(close_ups)],
        "test/test-long-shot": [f"{i}fromGOPR1082.MP4.png" for i in range(long_shot)],
    }
    seed = 5000
    for place, files in names.items():
        for name in files:
            seed += 1
            write_picture(root / "GT" / name, sharp_pixels(seed, size))
            write_picture(root / place / name, blurred(sharp_pixels(seed, size)))
    return folder


def make_realblur(
    folder: Path, train: int = 1, test: int = 2, pairs: int = 2, size: tuple[int, int] = (40, 44), lists: bool = True
) -> Path:
    """RealBlur/{J, R folders}/sceneNNN/{gt/gt_K.png,blur/blur_K.png} and the lists of `train` and `test` scenes.

    Sizes differ from scene to scene. A line is `GT BLUR ` with a blank at its end; the last line has no newline; the
    lists are not in the order of the names.
    """
    root = folder / "RealBlur"
    for kind, top in REALBLUR_FOLDERS.items():
        lines = {"train": [], "test": []}
        for scene in range(train + test):
            w, h = size[0] + 2 * scene, size[1] - scene
            for k in range(pairs, 0, -1):  # descending, as the real lists are not sorted either
                sharp = sharp_pixels(7000 + 100 * scene + k + (50 if kind == "R" else 0), (w, h))
                gt, blur = (f"{top}/scene{scene + 1:03d}/{name}/{name}_{k}.png" for name in ("gt", "blur"))
                write_picture(root / gt, sharp)
                write_picture(root / blur, blurred(sharp))
                lines["train" if scene < train else "test"].append(f"{gt} {blur} ")
        for split in lines if lists else ():
            (root / f"RealBlur_{kind}_{split}_list.txt").write_bytes("\n".join(lines[split]).encode())
    return folder


def make_reds(
    folder: Path,
    clips: int = 2,
    frames: int = 10,
    size: tuple[int, int] = (48, 32),
    kinds: tuple[str, ...] = ("val_sharp", "val_blur", "val_blur_jpeg"),
) -> Path:
    """REDS/val/{val_sharp,val_blur,val_blur_jpeg}/CCC/FFFFFFFF.{png,png,jpg}; val-300 are the JPEGs ending in 9."""
    for clip in range(clips):
        for frame in range(frames):
            sharp = sharp_pixels(9000 + 100 * clip + frame, size)
            for kind in kinds:
                name = f"{clip:03d}/{frame:08d}{'.jpg' if kind.endswith('jpeg') else '.png'}"
                write_picture(folder / "REDS/val" / kind / name, sharp if kind == "val_sharp" else blurred(sharp))
    return folder


def make_bsds500(folder: Path, train: int = 2, val: int = 1, test: int = 2, size: tuple[int, int] = (48, 32)) -> Path:
    """BSDS500-master/BSDS500/data/images/{train,val,test}/N.jpg, every second one upright; with a Thumbs.db."""
    root = folder / "BSDS500-master/BSDS500/data/images"
    seed = 12000
    for split, count in {"train": train, "val": val, "test": test}.items():
        for i in range(count):
            seed += 1
            write_picture(root / split / f"{seed}.jpg", sharp_pixels(seed, size if i % 2 == 0 else size[::-1]))
        (root / split / "Thumbs.db").write_bytes(b"not a picture")
    return folder


def make_kohler(
    folder: Path, images: int = 4, kernels: int = 12, frames: int = 3, size: tuple[int, int] = (40, 40)
) -> Path:
    """Kohler/{Blurry<i>_<j>.png, Image<i>/Kernel<j>/GroundTruth<i>_<j>_<k>.png}, `frames` of them (really 199)."""
    root = folder / "Kohler"
    for i in range(1, images + 1):
        sharp = sharp_pixels(15000 + i, size)
        for j in range(1, kernels + 1):
            write_picture(root / f"Blurry{i}_{j}.png", blurred(sharp, 3 + j % 4))
            for k in range(1, frames + 1):
                moved = np.roll(sharp, k - 1 - frames // 2, axis=1)
                write_picture(root / f"Image{i}/Kernel{j}/GroundTruth{i}_{j}_{k}.png", moved)
    return folder


def make_levin(folder: Path, images: int = 4, kernels: int = 8, size: tuple[int, int] = (40, 40)) -> Path:
    """The gray PNG copy: SelfDeblur-master/datasets/levin/{im<i>_kernel<k>_img,gt/im<i>,gt/kernel<k>}.png."""
    root = folder / "SelfDeblur-master/datasets/levin"
    for i in range(1, images + 1):
        sharp = sharp_pixels(17000 + i, size, 1)
        write_picture(root / f"gt/im{i}.png", sharp)
        for k in range(1, kernels + 1):
            write_picture(root / f"im{i}_kernel{k}_img.png", blurred(sharp, k + 2))
    for k in range(1, kernels + 1):
        kernel = np.zeros((19, 19, 1), np.uint8)
        kernel[9, 9 - (k + 2) // 2 : 9 - (k + 2) // 2 + k + 2] = 255
        write_picture(root / f"gt/kernel{k}.png", kernel)
    return folder


def make_levin_mat(folder: Path, images: int = 4, kernels: int = 8) -> Path:
    """The authors' form: LevinEtalCVPR09Data/Levin09blurdata/im0<5..8>_flit0<k>.mat (headers only)."""
    root = folder / "LevinEtalCVPR09Data/Levin09blurdata"
    root.mkdir(parents=True)
    for i in range(images):
        for k in range(1, kernels + 1):
            header = b"MATLAB 5.0 MAT-file, a miniature".ljust(124) + b"\x00\x01IM"
            (root / f"im0{5 + i}_flit0{k}.mat").write_bytes(header + bytes(64))
    return folder


def make_kodak24(folder: Path, size: tuple[int, int] = (48, 32)) -> Path:
    """Kodak24/kodimNN.png: 24 sharp pictures."""
    for i in range(1, 25):
        write_picture(folder / f"Kodak24/kodim{i:02d}.png", sharp_pixels(19000 + i, size))
    return folder


MINIATURES = {
    "gopro": make_gopro,
    "hide": make_hide,
    "realblur": make_realblur,
    "reds": make_reds,
    "bsds500": make_bsds500,
    "kohler": make_kohler,
    "levin": make_levin,
    "kodak24": make_kodak24,
}


def files_below(folder: Path, *below: str) -> list[Path]:
    """Files below folder/<each of below> (default: all of it), sorted."""
    places = [folder / name for name in below] or [folder]
    return sorted(
        path for place in places for path in ([place] if place.is_file() else place.rglob("*")) if path.is_file()
    )


def zip_tree(folder: Path, archive: Path, *below: str, root: Path | None = None) -> Path:
    """Zip what lies below `folder` (or only folder/<below>), with names relative to `root` (default: `folder`)."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:  # stored: PNGs do not shrink again
        for path in files_below(folder, *below):
            file.write(path, path.relative_to(root or folder).as_posix())
    return archive


def tar_tree(folder: Path, archive: Path, *below: str, root: Path | None = None) -> Path:
    """The same as a tar, compressed where the name ends in gz."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:gz" if archive.suffix in (".gz", ".tgz") else "w") as file:
        for path in files_below(folder, *below):
            file.add(path, path.relative_to(root or folder).as_posix(), recursive=False)
    return archive


def link_many(source: Path, targets: list[Path]) -> None:
    """The same file under many names, as hard links: thousands of pictures in the space of one."""
    for target in targets:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(source, target)
