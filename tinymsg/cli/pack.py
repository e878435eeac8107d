"""pack: pairs of pictures -> one memory-mapped file per split, which training reads without decoding."""

import argparse
from pathlib import Path

from .shared import positive


def add(commands: argparse._SubParsersAction) -> None:
    sub = commands.add_parser(
        "pack",
        help="decode pairs of pictures once, into one file for training",
        epilog="After an interruption the same command starts again. SOURCE may also be a packed folder, with "
        "--verify: its checksums are compared, and no pictures are needed.",
    )
    option = sub.add_argument
    option("source", metavar="SOURCE", help="a data set (gopro, hide, realblur_j, reds, ...) or a folder of pairs")
    option("--split", default="train", help="of a data set: train or test (default: %(default)s)")
    blur = "GoPro's choice, blur or blur_gamma; of a folder, the name of its folders with blurry pictures"
    option("--blur", default="blur", help=f"{blur} (default: %(default)s)")
    option("--out", metavar="FOLDER", help="default: ROOT/packed/NAME-SPLIT, where training finds it by name")
    option("--root", default="data", metavar="FOLDER", help="where the data sets lie (default: %(default)s)")
    option("--workers", type=positive, metavar="N", help="threads that decode (default: one per core)")
    option("--verify", action="store_true", help="compare every pair in the file with its pictures, too")
    option("--incomplete", action="store_true", help="take the pairs that are there, fewer than were published")
    sub.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..datasets.folders import folder_pairs
    from ..datasets.layouts import DATASETS, find_pairs
    from ..datasets.packed import PackedPairs, is_packed, packed_folder
    from ..datasets.packing import pack

    known, folder = args.source in DATASETS, Path(args.source)
    name = args.source if known else folder.resolve().name
    out = Path(args.out) if args.out else packed_folder(name, args.split, args.root)
    if known:
        pairs = find_pairs(args.source, args.root, args.split, args.blur, complete=not args.incomplete)
    elif is_packed(folder):
        found = PackedPairs(folder, verify=args.verify).name
        print(f"{folder}: {found}, " + ("every checksum is right" if args.verify else "packed already"))
        return 0
    else:
        pairs = folder_pairs(folder, args.blur)
    there = is_packed(out)
    manifest = pack(pairs, out, name, args.split, args.blur, args.workers, args.verify)
    n, _, h, w, _ = manifest["shape"]
    size = f"frames of {w}x{h}, {n * 6 * h * w / 1e9:.2f} GB, SHA-256 {manifest['identity'][:16]}"
    notes = ", was packed already" * there + ", verified against the pictures" * args.verify
    print(f"{out}: {n} pairs of {name} {args.split} ({args.blur}), {size}{notes}")
    return 0
