"""The paper's evaluation: whole pictures of its test sets, restored once, scored as published work does, resumable.

Every restored picture is kept as an 8-bit PNG, and scored as that: so are the pictures that others publish. Scores go
to a file of lines that survives a kill; a line says what it is of (weights, setting, seed, data set, protocol, picture),
so that what was made under another setting is never mixed in.

The paper does not say (or we could not read) which part of REDS it used, how it cut pictures for FID and KID, and which
NIQE: `reds_val300` is our default, because it is the part that deblurring papers report (NAFNet and after), because its
300 pictures weigh an evaluation down the least, and because about 26.8 dB, which the paper's means imply for MPRNet on
REDS, fits compressed input; FID and KID see whole pictures; NIQE is `niqe.py`, with the parameters that are given.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from ..data import ImageError, Pair, read_image, to_display, to_model, write_image
from ..evaluate import METRICS, MetricUnavailable, available, measure
from ..machine import out_of_memory
from ..model import Model, ModelConfig
from ..sample import Setting, draw_samples
from .align import PROTOCOLS
from .fid import EXTRACTOR, SET_METRICS, set_distances
from .ledger import Ledger, digest
from .niqe import WHERE, Pristine, niqe_score
from .published import COLUMNS

SETS = ("gopro", "hide", "realblur_j", "reds_val300")  # over which the paper's Table 3 takes the mean
PROTOCOL_OF = {
    "realblur_j": "realblur",
    "realblur_r": "realblur",
    "kohler": "kohler",
    "levin": "shift",
}  # others: plain
IMAGE_METRICS = ("lpips", "niqe", "psnr", "ssim")


# --- what is evaluated ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TestSet:
    """Pairs that are scored together. `identity` says all that decides which they are."""

    __test__ = False  # not a test, whatever pytest makes of its name
    name: str
    title: str
    identity: str
    pairs: tuple[Pair, ...]
    total: int  # how many the whole set has
    protocol: str


@dataclass(frozen=True)
class Entry:
    """Weights under one setting, which is fixed before a test set is looked at."""

    label: str
    model: Model
    weights: str  # SHA-256
    setting: Setting
    seed: int = 0

    @property
    def noise_key(self) -> dict[str, str]:
        """For keys of what is sampled: each kind of device draws other noise from one seed. The CPU, once the only one, goes unsaid."""
        kind = next(self.model.parameters()).device.type
        return {} if kind == "cpu" else {"device": kind}


@dataclass(frozen=True)
class Row:
    """A row of the table: sharp, blurry, or the mean of so many samples of an entry."""

    label: str
    kind: str  # sharp, blurry or model
    entry: Entry | None = None
    samples: int = 1

    def key(self) -> dict:
        """All that decides its pictures, but for the data."""
        if self.entry is None:
            return {"row": self.kind}
        setting = asdict(replace(self.entry.setting, samples=self.samples))
        precision = self.entry.model.config.precision
        return {
            "row": "model",
            "weights": self.entry.weights,
            "setting": setting,
            "precision": precision,
            "seed": self.entry.seed,
        } | self.entry.noise_key

    def folder(self) -> str:
        """Name of the folder of its pictures: another one for another key, whatever the row is called."""
        s = self.entry.setting
        return f"{s.sampler}-{s.steps}-{s.max_noise}-x{self.samples}-{digest(self.key())}"


def rows_of(entries: list[Entry]) -> list[Row]:
    """The table's rows: the sharp and the blurry pictures, then each entry's single sample and mean of samples."""
    rows = [Row("sharp", "sharp"), Row("blurry", "blurry")]
    for entry in entries:
        rows.append(Row(entry.label, "model", entry))
        if entry.model.config.kind == "diffusion" and entry.setting.samples > 1:
            rows.append(Row(f"{entry.label}-SA", "model", entry, entry.setting.samples))
    return rows


def choose_protocol(name: str, asked: str | None) -> str:
    protocol = asked or PROTOCOL_OF.get(name, "plain")
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}; known: {', '.join(PROTOCOLS)}")
    if protocol == "realblur" and find_spec("cv2") is None:
        raise ValueError(
            "RealBlur's protocol needs opencv-python-headless, of the extra `full`; --align plain does without it"
        )
    return protocol


def spread(pairs: list[Pair], limit: int | None) -> tuple[Pair, ...]:
    """`limit` of the pairs, evenly spread; all of them for None or fewer."""
    if limit is None or limit >= len(pairs):
        return tuple(pairs)
    return tuple(pairs[i * len(pairs) // limit] for i in range(limit))


# --- scoring --------------------------------------------------------------------------------------------------


@dataclass
class Scorer:
    """Which metrics are computed, with what; `unavailable` says why not for those that cannot be.

    pieces: FID and KID of whole pictures (None), or of pieces of so many pixels.
    inception: a file with Inception's weights, instead of their download.
    """

    pristine: Pristine | None = None
    device: torch.device = torch.device("cpu")
    pieces: int | None = None
    inception: Path | None = None
    metrics: tuple[str, ...] = COLUMNS  # once made: those of single pictures that can be computed
    unavailable: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        unknown = sorted(set(self.metrics) - set(COLUMNS))
        if unknown:
            raise ValueError(f"unknown metric {unknown[0]!r}; known: {', '.join(COLUMNS)}")
        self.unavailable |= {m: "not asked for" for m in COLUMNS if m not in self.metrics}
        _, reasons = available(tuple(m for m in self.metrics if m in METRICS))
        self.unavailable |= reasons
        if "niqe" in self.metrics and self.pristine is None:
            self.unavailable["niqe"] = f"NIQE needs its pristine model: {WHERE}"
        self.metrics = tuple(m for m in IMAGE_METRICS if m not in self.unavailable)

    def stored(self, metric: str) -> str:
        """The name under which a metric is kept: another NIQE model's values are other values."""
        if metric != "niqe":
            return metric
        return f"niqe@{digest([self.pristine.mean.tolist(), self.pristine.covariance.tolist()])}"

    def wanted(self, row: Row) -> tuple[str, ...]:
        """Of the sharp pictures themselves, only what needs no other picture."""
        return tuple(m for m in self.metrics if row.kind != "sharp" or m == "niqe")

    def score(self, estimate: Tensor, truths: list[Tensor], protocol: str, metrics: tuple[str, ...]) -> dict:
        """Scores of one picture by stored name; a sentence in the place of a number that there cannot be."""
        estimate, truths, scores = estimate.to(self.device), [truth.to(self.device) for truth in truths], {}
        if {"psnr", "ssim"} & set(metrics):
            found = PROTOCOLS[protocol](estimate, truths)
            scores |= {m: round(found[m], 5) for m in ("psnr", "ssim") if m in metrics}
        if "niqe" in metrics:
            try:
                scores[self.stored("niqe")] = round(niqe_score(estimate.cpu(), self.pristine), 5)
            except ValueError as error:
                scores[self.stored("niqe")] = str(error)
        if "lpips" in metrics:
            if len(truths) == 1:  # on the picture as it is, also where PSNR and SSIM are of an aligned one
                pair = (to_model(image)[None] for image in (estimate, truths[0]))
                scores["lpips"] = round(measure(*pair, ("lpips",))["lpips"][0], 5)
            else:
                scores["lpips"] = "LPIPS is not defined for many sharp frames"
        return scores


def picture_path(out: Path, test: TestSet, row: Row, pair: Pair) -> Path:
    """Where a row's picture of a pair lies."""
    if row.kind == "sharp":
        return pair.sharp_paths[0]
    if row.kind == "blurry":
        return pair.blurry
    return out / "pictures" / f"{test.name}-{digest([test.identity])[:6]}" / row.folder() / f"{pair.name}.png"


def score_key(test: TestSet, row: Row, pair: Pair) -> dict:
    """The key of one picture's scores."""
    return {"set": test.identity, "protocol": test.protocol, "image": pair.name} | row.key()


# --- the run --------------------------------------------------------------------------------------------------


def run_set(
    test: TestSet,
    rows: list[Row],
    out: Path,
    ledger: Ledger,
    scorer: Scorer,
    restoring: bool = True,
    check: Callable[[Path, Tensor, ModelConfig], None] = lambda *_: None,
) -> Iterator[str | None]:
    """Restore and score a set; yields once a pair: None, or the sentence that says what failed. What is done is not redone.

    Args:
        out: folder of the pictures.
        restoring: False only scores the pictures that are there.
        check: raises ImageError for a picture that would not fit into the memory.
    """
    entries = {row.entry.label: row.entry for row in rows if row.entry is not None}
    for pair in test.pairs:
        failed = []
        for entry in entries.values() if restoring else ():
            own = [row for row in rows if row.entry is entry]
            failed += _attempt(pair, _restore_pair, test, entry, own, pair, out, scorer.device, check)
        for row in rows:
            failed += _attempt(pair, _score_pair, test, row, pair, out, ledger, scorer)
        yield "; ".join(dict.fromkeys(failed)) or None


def _attempt(pair: Pair, work: Callable[..., None], *arguments) -> list[str]:
    """[] or [what went wrong with this picture]. What is wrong with the program is raised."""
    try:
        work(*arguments)
    except ImageError as error:
        return [str(error)]
    except (ValueError, MetricUnavailable) as error:
        return [f"{pair.blurry}: {error}"]
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return [f"{pair.blurry}: not enough memory"]
    return []


def _restore_pair(
    test: TestSet, entry: Entry, rows: list[Row], pair: Pair, out: Path, device: torch.device, check
) -> None:
    targets = {row.samples: picture_path(out, test, row, pair) for row in rows}
    if all(path.is_file() for path in targets.values()):
        return
    x = to_model(read_image(pair.blurry))[None].to(device)
    check(pair.blurry, x, entry.model.config)
    for samples, image in draws(entry, x, f"{test.identity} {pair.name}").items():
        if samples in targets:
            write_image(targets[samples], to_display(image[0]))


def draws(entry: Entry, x: Tensor, name: str) -> dict[int, Tensor]:
    """{1: one sample, K: the mean of K, of which that one is the first}, (1, 3, h, w) in [-1, 1], whole, without tiles.

    The noise depends on (entry.seed, name) alone: the order of pictures and restarts do not matter.
    """
    noise = hashlib.sha256(f"{entry.seed} {name}".encode()).digest()
    generator = torch.Generator(x.device).manual_seed(int.from_bytes(noise[:6], "big"))
    results, total, number = {}, torch.zeros_like(x), 0
    for number, sample in enumerate(draw_samples(entry.model, x, entry.setting, generator), start=1):
        total += sample
        results.setdefault(1, sample)
    return results | {number: total / number}


def _score_pair(test: TestSet, row: Row, pair: Pair, out: Path, ledger: Ledger, scorer: Scorer) -> None:
    path, key = picture_path(out, test, row, pair), score_key(test, row, pair)
    known = ledger.get(key)
    metrics = tuple(m for m in scorer.wanted(row) if scorer.stored(m) not in known)
    if metrics and path.is_file():
        estimate, truths = _read_own(path, row), [read_image(sharp) for sharp in pair.sharp_paths]
        ledger.add(key, scorer.score(estimate, truths, test.protocol, metrics))


def _read_own(path: Path, row: Row) -> Tensor:
    try:
        return read_image(path)
    except ImageError as error:
        if row.kind == "model":  # written by us, and lost since, as by a power cut
            path.unlink(missing_ok=True)
            raise ImageError(f"{error}; removed: the same command restores it anew") from None
        raise


def score_whole_set(test: TestSet, row: Row, out: Path, ledger: Ledger, scorer: Scorer) -> dict:
    """FID and KID of those of a row's pictures that are there: numbers and how many pictures, or why there is none."""
    if row.kind == "sharp" or test.protocol == "kohler":
        return {}
    wanted = [name for name in SET_METRICS if scorer.unavailable.get(name) != "not asked for"]
    if not wanted:
        return {}
    there = [(picture_path(out, test, row, pair), pair) for pair in test.pairs]
    there = [(path, pair) for path, pair in there if path.is_file()]
    # Where the network's weights are from is no part of the key: there is one set of them
    images = digest([pair.name for _, pair in there])
    key = {"set": test.identity, "images": images, "pieces": scorer.pieces, "network": EXTRACTOR} | row.key()
    if not ledger.get(key):
        if wanted[0] in scorer.unavailable:
            return {}
        try:
            found = set_distances(
                [path for path, _ in there],
                [pair.sharp_paths[0] for _, pair in there],
                scorer.device,
                scorer.pieces,
                scorer.inception,
                out / "features",
            )
        except MetricUnavailable as error:  # for every set
            scorer.unavailable |= dict.fromkeys(wanted, str(error))
            return {}
        except ValueError as error:  # for this one
            return dict.fromkeys(wanted, str(error))
        ledger.add(key, {name: round(value, 5) for name, value in found.items()})
    return {name: ledger.get(key)[name] for name in wanted} | {"pictures": len(there)}
