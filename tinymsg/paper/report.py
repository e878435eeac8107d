"""The paper's table: our scores beside published ones, each marked ours or published, and what is missing said."""

from pathlib import Path

import torch

from ..evaluate import bootstrap_interval
from .fid import SET_METRICS
from .ledger import Ledger
from .protocol import IMAGE_METRICS, SETS, Row, Scorer, TestSet, score_key
from .published import COLUMNS, PUBLISHED

DIGITS = {"lpips": 3, "niqe": 2, "fid": 2, "kid": 2, "psnr": 2, "ssim": 3}
HEADS = {"lpips": "LPIPS ↓", "niqe": "NIQE ↓", "fid": "FID ↓", "kid": "KID×1000 ↓", "psnr": "PSNR ↑", "ssim": "SSIM ↑"}
PROTOCOL_TEXT = {
    "plain": "pixel on pixel",
    "realblur": "PSNR and SSIM after RealBlur's own alignment (intensity, ECC homography, mask); LPIPS without it",
    "shift": "PSNR and SSIM at the best whole-pixel shift; LPIPS without it",
    "kohler": "PSNR and SSIM of the best sharp frame of the exposure, after intensity and whole-pixel shift",
}
Values = dict[str, dict[str, list[float]]]  # of a set: row -> metric -> value of each picture


# --- numbers --------------------------------------------------------------------------------------------------


def collect(
    test: TestSet, rows: list[Row], ledger: Ledger, scorer: Scorer, whole: dict[str, dict]
) -> tuple[dict, Values]:
    """(summary of a set, its values). whole: FID and KID of each row, from `protocol.score_whole_set`."""
    table, values = {}, {}
    for row in rows:
        known = [ledger.get(score_key(test, row, pair)) for pair in test.pairs]
        values[row.label], table[row.label] = {}, {}
        for metric in IMAGE_METRICS:
            if metric in scorer.unavailable or metric not in scorer.wanted(row):
                continue
            found = [scores[scorer.stored(metric)] for scores in known if scorer.stored(metric) in scores]
            numbers = [v for v in found if not isinstance(v, str)]
            values[row.label][metric] = numbers
            if numbers:
                table[row.label][metric] = describe(numbers)
            else:
                table[row.label][metric] = {"n": 0, "why": found[0] if found else "no picture was scored"}
        distances = dict(whole.get(row.label, {}))
        pictures = distances.pop("pictures", 0)
        for metric, value in distances.items():
            table[row.label][metric] = (
                {"n": 0, "why": value} if isinstance(value, str) else {"mean": value, "n": pictures}
            )
    summary = {
        "title": test.title,
        "data": Path(test.identity).name,
        "pictures": len(test.pairs),
        "of": test.total,
        "protocol": test.protocol,
        "rows": table,
    }
    return summary, values


def describe(numbers: list[float]) -> dict:
    """Mean over pictures, its 95 % bootstrap interval (from two pictures on), and how many they are."""
    tensor = torch.tensor(numbers, dtype=torch.float64)
    low, high = bootstrap_interval(tensor) if len(numbers) > 1 else (None, None)
    return _rounded(float(tensor.mean()), low, high) | {"n": len(numbers)}


def mean_over_sets(sets: dict[str, dict], values: dict[str, Values]) -> dict[str, dict]:
    """Row -> metric -> mean over the paper's four sets, each with equal weight, as in its Table 3; `sets` says over how many.

    The interval resamples the pictures of each set on its own. FID and KID, one number a set, have none.
    """
    chosen = [name for name in (*SETS[:3], next((n for n in ("reds_val300", "reds") if n in sets), "")) if name in sets]
    means: dict[str, dict] = {}
    for row in dict.fromkeys(row for name in chosen for row in sets[name]["rows"]):
        means[row] = {}
        for metric in COLUMNS:
            there = [name for name in chosen if "mean" in sets[name]["rows"].get(row, {}).get(metric, {})]
            if not there:
                continue
            cells = [sets[name]["rows"][row][metric] for name in there]
            lists = [torch.tensor(values[name][row].get(metric, []), dtype=torch.float64) for name in there]
            interval = (None, None) if metric in SET_METRICS or min(map(len, lists)) < 2 else stratified_interval(lists)
            subset = any(cell["n"] < sets[name]["of"] for cell, name in zip(cells, there, strict=True))
            means[row][metric] = _rounded(sum(c["mean"] for c in cells) / len(cells), *interval) | {
                "sets": len(there),
                "subset": subset,
            }
    return means


def stratified_interval(lists: list[torch.Tensor], draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of the means of several samples, each (n >= 2,)."""
    generator = torch.Generator().manual_seed(seed)
    means = [v[torch.randint(len(v), (draws, len(v)), generator=generator)].mean(dim=1) for v in lists]
    low, high = torch.quantile(
        torch.stack(means).mean(dim=0), torch.tensor([0.025, 0.975], dtype=torch.float64)
    ).tolist()
    return low, high


def _rounded(mean: float, low: float | None, high: float | None) -> dict:
    cell = {"mean": round(mean, 4)}
    return cell if low is None else cell | {"low": round(low, 4), "high": round(high, 4)}


# --- the table ------------------------------------------------------------------------------------------------


def markdown(results: dict) -> str:
    """All tables of a results file, as the `paper` command writes it, as one Markdown text."""
    parts = ["# GoPro-trained deblurring: our scores beside published ones", *_preface(results)]
    parts += [
        "## Mean over GoPro, HIDE, RealBlur-J and REDS, each with equal weight (the form of Ren 2023, Table 3)",
        "\n".join(_table("mean", results["mean"], results)),
    ]
    for name, summary in results["sets"].items():
        share = (
            f"{summary['pictures']} pictures"
            if summary["pictures"] == summary["of"]
            else (f"**only {summary['pictures']} of {summary['of']} pictures**")
        )
        parts += [
            f"## {summary['title']}",
            f"Data: {summary['data']}; {share}; {PROTOCOL_TEXT[summary['protocol']]}.",
            "\n".join(_table(name, summary["rows"], results, summary["pictures"])),
        ]
    for name, reason in results["missing"].items():
        parts += [f"## {name}", f"**Not there, and no number is guessed for it**: {reason}."]
    return "\n\n".join(parts + ["## Notes", "\n".join(_notes(results))]) + "\n"


def _preface(results: dict) -> list[str]:
    lines = [
        "The column *whose* says of each row whether it was measured here (**ours**) or published by others, and where. "
        "± is half the width of the 95 % bootstrap interval over pictures."
    ]
    for label, entry in results["settings"].items():
        s = entry["setting"]
        averaged = f", `{label}-SA` the mean of {s['samples']}." if s["samples"] > 1 else "."
        lines.append(
            f"{label}: {entry['source']}, SHA-256 {entry['sha256'][:12]}, {entry['config']['precision']}; {s['sampler']}, "
            f"{s['steps']} steps, max_noise {s['max_noise']} ({entry['chosen']}); `{label}` is one sample{averaged}"
        )
    return lines


def _table(name: str, rows: dict[str, dict], results: dict, pictures: int | None = None) -> list[str]:
    lines = ["| method | whose | " + " | ".join(HEADS[m] for m in COLUMNS) + " |", "|---|---|" + "---:|" * len(COLUMNS)]
    for row in PUBLISHED.get(name, ()):
        cells = [_number(getattr(row, m), m) for m in COLUMNS]
        lines.append(f"| {row.method} | published: {row.source} | " + " | ".join(cells) + " |")
    for label, cells in rows.items():
        if cells:  # the sharp pictures have no row without NIQE
            texts = [_cell(cells.get(m), m, pictures, results) for m in COLUMNS]
            lines.append(f"| {label} | **ours** | " + " | ".join(texts) + " |")
    return lines


def _number(value: float | None, metric: str) -> str:
    return "–" if value is None else f"{value:.{DIGITS[metric]}f}"


def _cell(cell: dict | None, metric: str, pictures: int | None, results: dict) -> str:
    if cell is None or "mean" not in cell:
        return "–"
    text = _number(cell["mean"], metric)
    if "low" in cell:
        text += f" ± {(cell['high'] - cell['low']) / 2:.{DIGITS[metric]}f}"
    if metric == "niqe" and results["niqe"] and results["niqe"]["fitted_here"]:
        text += " ‡"
    if cell.get("sets", len(SETS)) < len(SETS):
        text += f" ({cell['sets']} of {len(SETS)} sets)"
    if cell.get("subset"):
        text += " *"
    if pictures is not None and cell["n"] < pictures:
        text += f" ({cell['n']} of {pictures} pictures)"
    return text


def _notes(results: dict) -> list[str]:
    notes = ["`*` of fewer pictures than the whole sets: not comparable with published means."]
    notes += [f"{m.upper()} has no values of ours: {reason}." for m, reason in results["unavailable"].items()]
    notes += [
        f"The setting of {label} was chosen {entry['chosen']}, but {entry['doubt']}."
        for label, entry in results["settings"].items()
        if entry.get("doubt")
    ]
    for summary in results["sets"].values():
        reasons = {
            f"{m.upper()} of {summary['title']}: {c['why']}."
            for row in summary["rows"].values()
            for m, c in row.items()
            if "why" in c
        }
        notes += sorted(reasons)
    if results["niqe"]:
        origin = "values depend on implementation and parameters (MPRNet on GoPro: 4.09 in DvSR, 5.16 in OSDD)"
        if results["niqe"]["fitted_here"]:
            origin = "‡ a pristine model of our own: **not comparable with published values**"
        notes.append(f"NIQE by tinymsg.paper.niqe with {results['niqe']['source']}; {origin}.")
    size = results["pieces"]
    notes.append(
        "FID and KID by torch-fidelity, on "
        + (f"pieces of {size}x{size} pixels" if size else "whole pictures (resized to 299x299 by the network)")
        + "; what the paper and DvSR did is not known."
    )
    notes.append("LPIPS: AlexNet, version 0.1. All scores are of 8-bit pictures; equal pictures count 100 dB.")
    notes.append(
        "Published KID is taken to be times 1000, as DvSR's is. Published GoPro scores are, as far as is known, of its "
        "`blur`, not `blur_gamma`. Others give DeblurGAN-v2 GoPro 29.55/0.934 and HIDE 26.61/0.875."
    )
    if any(name.startswith("reds") for name in (*results["sets"], *results["missing"])):
        notes.append(
            "Which part of REDS the paper used is not known; reds_val300 (compressed, 300 pictures) is our choice."
        )
    notes += [f"Failed: {sentence}" for sentence in results["failures"]]
    return [f"- {note}" for note in notes]
