"""The paper's evaluation: whole pictures of its test sets, restored once, scored as published work does, resumable.

Every restored picture is kept as an 8-bit PNG, and scored as that: so are the pictures that others publish. Scores go
to a ledger under a key of all that decides them: what was made under another setting is never mixed in.

Which part of REDS the paper used is not known. `reds_val300` is our default: deblurring papers report it (NAFNet and
after), and about 26.8 dB, which the paper's means imply for MPRNet on REDS, fits compressed input.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from ..data import ImageError, Pair, read_image, to_display, to_model, write_image
from ..evaluate import METRICS, MetricUnavailable, available, measure, sample_and_mean
from ..machine import out_of_memory, use_bf16
from ..model import Model
from ..sample import Setting
from .align import PROTOCOLS
from .fid import EXTRACTOR, SET_METRICS, set_distances
from .niqe import WHERE, Pristine, niqe_score
from .published import COLUMNS

MEAN_SETS = ("gopro", "hide", "realblur_j", "reds_val300")  # over which the paper's Table 3 takes the mean
# The others are scored pixel on pixel
PROTOCOL_OF = {"realblur_j": "realblur", "realblur_r": "realblur", "kohler": "kohler", "levin": "shift"}


def digest(key: object) -> str:
    """Twelve hex digits that stand for a key of JSON values."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]


class Ledger:
    """Scores on disk: one JSON object per line, written as it is added. What a damaged line held is redone."""

    def __init__(self, path: str | Path):
        self.path, self._scores = Path(path), {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = self.path.read_bytes() if self.path.exists() else b""
        with open(self.path, "ab") as file:
            file.truncate(text.rfind(b"\n") + 1)
        for line in text.splitlines():
            with suppress(ValueError, KeyError, TypeError):
                record = json.loads(line)
                self._scores.setdefault(digest(record["key"]), {}).update(record["scores"])

    def get(self, key: dict) -> dict:
        """Scores of a key by metric; a value is a number, or a sentence that says why there is none."""
        return self._scores.get(digest(key), {})

    def add(self, key: dict, scores: dict) -> None:
        """Append scores; later ones of the same key and metric win. Raises: ValueError for what is not finite."""
        line = json.dumps({"key": key, "scores": scores}, allow_nan=False) + "\n"
        with open(self.path, "ab") as file:
            file.write(line.encode())
        self._scores.setdefault(digest(key), {}).update(scores)


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
class Row:
    """A row of the table: restorations by a model under one setting; without a model the pictures that its label names.

    weights: SHA-256. setting: fixed before a test set is looked at; the mean of its samples is the row's picture.
    """

    label: str  # sharp and blurry are names of pictures
    model: Model | None = None
    weights: str = ""
    setting: Setting = Setting()
    seed: int = 0

    def key(self) -> dict:
        """All that decides its pictures, but for the data; each kind of device draws other noise from one seed."""
        if self.model is None:
            return {"row": self.label}
        device = next(self.model.parameters()).device
        return {
            "weights": self.weights,
            "setting": asdict(self.setting),
            "seed": self.seed,
            "device": device.type,
            "bf16": use_bf16(self.model.config.precision, device),
        }

    def averaging(self, samples: int) -> "Row":
        """The same with another number of samples, of which the first are the same."""
        label = self.label if samples == 1 else f"{self.label}-SA"
        return replace(self, label=label, setting=replace(self.setting, samples=samples))


class Evaluation:
    """A folder with the restored pictures and scores.jsonl; what is there is not made again.

    metrics: of COLUMNS; kept are those of single pictures that can be computed. `unavailable` says why others are not.
    """

    def __init__(
        self, out: Path, metrics=COLUMNS, pristine: Pristine | None = None, device: torch.device | str = "cpu"
    ):
        self.out, self.pristine, self.device = out, pristine, torch.device(device)
        self.ledger = Ledger(out / "scores.jsonl")
        self.unavailable = {m: "not asked for" for m in COLUMNS if m not in metrics}
        self.unavailable |= available(tuple(m for m in metrics if m in METRICS))[1]
        if "niqe" in metrics and pristine is None:
            self.unavailable["niqe"] = f"NIQE needs its pristine model: {WHERE}"
        self.metrics = tuple(m for m in COLUMNS if m not in (*SET_METRICS, *self.unavailable))
        self.set_metrics = tuple(m for m in SET_METRICS if m in metrics)

    def run(self, test: TestSet, rows: list[Row], restoring: bool = True) -> Iterator[str | None]:
        """Restore and score a set; yields once per pair: None, or what failed in a sentence.

        Args:
            restoring: False only scores the pictures that are there.
        """
        for pair in test.pairs:
            failed: dict[str, None] = {}
            for row in reversed(rows):  # a mean of samples, which gives the single one too, before that
                try:
                    if restoring and row.model is not None:
                        self._restore(test, row, row.model, pair)
                    self._score(test, row, pair)
                except (ValueError, MetricUnavailable) as error:
                    failed[str(error) if isinstance(error, ImageError) else f"{pair.blurry}: {error}"] = None
                except (RuntimeError, MemoryError) as error:
                    if not out_of_memory(error):
                        raise  # what is wrong with the program
                    failed[f"{pair.blurry}: not enough memory"] = None
            yield "; ".join(failed) or None

    def picture(self, test: TestSet, row: Row, pair: Pair) -> Path:
        """Where a row's picture lies: in another folder for another key, whatever the row is called."""
        if row.model is None:
            return pair.sharp_paths[0] if row.label == "sharp" else pair.blurry
        s = row.setting
        folder = f"{s.sampler}-{s.steps}-{s.max_noise}-x{s.samples}-{digest(row.key())}"
        return self.out / "pictures" / f"{test.name}-{digest(test.identity)[:6]}" / folder / f"{pair.name}.png"

    def scores(self, test: TestSet, row: Row, pair: Pair) -> dict[str, float | str]:
        """A picture's scores by metric, as far as they are known; a sentence where there cannot be a number."""
        known = self.ledger.get(_key(test, row, pair))
        return {m: known[self._stored(m)] for m in self.wanted(row) if self._stored(m) in known}

    def wanted(self, row: Row) -> tuple[str, ...]:
        """Of the sharp pictures themselves, only what needs no other picture."""
        return tuple(m for m in self.metrics if row.label != "sharp" or m == "niqe")

    def score_whole_set(self, test: TestSet, row: Row) -> dict[str, dict]:
        """FID and KID of the pictures that are there: {metric: {"mean": value, "n": number}}, or why there is none."""
        if not self.set_metrics or row.label == "sharp" or test.protocol == "kohler":
            return {}
        there = [pair for pair in test.pairs if self.picture(test, row, pair).is_file()]
        key = {"set": test.identity, "images": digest([pair.name for pair in there]), "network": EXTRACTOR} | row.key()
        if not self.ledger.get(key):
            if self.set_metrics[0] in self.unavailable:
                return {}
            pictures = [self.picture(test, row, pair) for pair in there]
            try:
                found = set_distances(pictures, [pair.sharp_paths[0] for pair in there], self.device)
            except MetricUnavailable as error:  # for every set
                self.unavailable |= dict.fromkeys(self.set_metrics, str(error))
                return {}
            except ValueError as error:  # for this one
                return {name: {"n": 0, "why": str(error)} for name in self.set_metrics}
            self.ledger.add(key, {name: round(value, 5) for name, value in found.items()})
        return {name: {"mean": self.ledger.get(key)[name], "n": len(there)} for name in self.set_metrics}

    def _restore(self, test: TestSet, row: Row, model: Model, pair: Pair) -> None:
        """Write a row's picture, whole and without tiles, and the first of its samples, unless it is there.

        The noise depends on (seed, set, picture) alone: the order of pictures and restarts do not matter.
        """
        path = self.picture(test, row, pair)
        if path.is_file():
            return
        x = to_model(read_image(pair.blurry))[None].to(self.device)
        seed = int(digest([row.seed, test.identity, pair.name]), 16)
        generator = torch.Generator(self.device).manual_seed(seed)
        one, mean = sample_and_mean(model, x, row.setting, generator)
        write_image(self.picture(test, row.averaging(1), pair), to_display(one[0]))
        write_image(path, to_display(mean[0]))

    def _score(self, test: TestSet, row: Row, pair: Pair) -> None:
        path, missing = self.picture(test, row, pair), set(self.wanted(row)) - self.scores(test, row, pair).keys()
        if not missing or not path.is_file():
            return
        estimate, *truths = (read_image(picture).to(self.device) for picture in (path, *pair.sharp_paths))
        for truth in truths:
            if truth.shape != estimate.shape:
                raise ValueError(f"sizes of the pair differ, {tuple(truth.shape)} and {tuple(estimate.shape)}")
        scores: dict[str, float | str] = {}
        if {"psnr", "ssim"} & missing:
            found = PROTOCOLS[test.protocol](estimate, truths)
            scores |= {m: round(found[m], 5) for m in ("psnr", "ssim") if m in missing}
        if "niqe" in missing and self.pristine is not None:
            try:
                scores[self._stored("niqe")] = round(niqe_score(estimate.cpu(), self.pristine), 5)
            except ValueError as error:
                scores[self._stored("niqe")] = str(error)
        if "lpips" in missing and len(truths) > 1:
            scores["lpips"] = "LPIPS is not defined for many sharp frames"
        elif "lpips" in missing:  # on the picture as it is, also where PSNR and SSIM are of an aligned one
            found = measure(to_model(estimate)[None], to_model(truths[0])[None], ("lpips",))
            scores["lpips"] = round(found["lpips"][0], 5)
        self.ledger.add(_key(test, row, pair), scores)

    def _stored(self, metric: str) -> str:
        """The name under which a metric is kept: another NIQE model's values are other values."""
        return f"niqe with {self.pristine.source}" if metric == "niqe" and self.pristine else metric


def _key(test: TestSet, row: Row, pair: Pair) -> dict:
    return {"set": test.identity, "protocol": test.protocol, "image": pair.name} | row.key()
