"""The paper's table: our scores beside published ones, each marked ours or published, and what is missing said."""

import math
from itertools import product
from pathlib import Path

from ..evaluate import summary
from .protocol import MEAN_SETS, Evaluation, Row, TestSet
from .published import COLUMNS, PUBLISHED

HEADS = {"lpips": "LPIPS ↓", "niqe": "NIQE ↓", "fid": "FID ↓", "kid": "KID×1000 ↓", "psnr": "PSNR ↑", "ssim": "SSIM ↑"}
NOTES = (
    "± is half the width of the 95 % bootstrap interval over pictures.",
    "`*` of fewer pictures than the whole sets: not comparable with published means.",
    "FID and KID by torch-fidelity, on whole pictures (resized to 299x299); what the paper and DvSR did is not known.",
    "PSNR and SSIM (LPIPS never) are of aligned pictures: realblur by intensity, ECC homography and mask, as its own "
    "script; shift by whole pixels; kohler by intensity and whole pixels, the best sharp frame of the exposure.",
    "LPIPS: AlexNet, version 0.1. All scores are of 8-bit pictures; equal pictures count 100 dB.",
    "NIQE depends on implementation and parameters (MPRNet on GoPro: 4.09 in DvSR, 5.16 in OSDD).",
    "Published GoPro scores are, as far as is known, of its `blur`; of REDS the paper's part is not known.",
)


def collect(evaluation: Evaluation, test: TestSet, rows: list[Row]) -> dict:
    """What a results file says of a set that was run; its FID and KID are computed here."""
    table = {}
    for row in rows:
        known = [evaluation.scores(test, row, pair) for pair in test.pairs]
        wanted = {m: describe([scores[m] for scores in known if m in scores]) for m in evaluation.wanted(row)}
        table[row.label] = evaluation.score_whole_set(test, row) | wanted
    return {
        "title": test.title,
        "data": Path(test.identity).name,
        "pictures": len(test.pairs),
        "of": test.total,
        "protocol": test.protocol,
        "rows": table,
    }


def describe(found: list[float | str]) -> dict:
    """Mean over pictures, its 95 % interval (from two pictures on), and how many; or why there is no number."""
    numbers = [float(value) for value in found if not isinstance(value, str)]
    if not numbers:
        return {"n": 0, "why": found[0] if found else "no picture was scored"}
    return (summary(numbers) if len(numbers) > 1 else {"mean": round(numbers[0], 4)}) | {"n": len(numbers)}


def mean_over_sets(sets: dict[str, dict]) -> dict[str, dict]:
    """Row -> metric -> mean over the paper's four sets, each with equal weight, as in its Table 3.

    `sets` says over how many, `subset` whether pictures are left out. The sets' intervals, independent of each other,
    add as squares; FID and KID, one number per set, have none.
    """
    chosen = [sets[name] for name in (*MEAN_SETS[:3], MEAN_SETS[3] if MEAN_SETS[3] in sets else "reds") if name in sets]
    means: dict[str, dict] = {row: {} for found in chosen for row in found["rows"]}
    for row, metric in product(means, COLUMNS):
        cells = [found["rows"].get(row, {}).get(metric, {}) | {"of": found["of"]} for found in chosen]
        cells = [cell for cell in cells if "mean" in cell]
        if not cells:
            continue
        mean = sum(cell["mean"] for cell in cells) / len(cells)
        means[row][metric] = {"mean": round(mean, 4)}
        if all("low" in cell for cell in cells):
            half = math.hypot(*((cell["high"] - cell["low"]) / 2 for cell in cells)) / len(cells)
            means[row][metric] |= {"low": round(mean - half, 4), "high": round(mean + half, 4)}
        means[row][metric] |= {"sets": len(cells), "subset": any(cell["n"] < cell["of"] for cell in cells)}
    return means


def markdown(results: dict) -> str:
    """All tables of a results file, as the `paper` command writes it, as one Markdown text."""
    parts = ["# GoPro-trained deblurring: our scores beside published ones"]
    for label, entry in results["settings"].items():
        s = entry["setting"]
        averaged = f"; in the row -SA the mean of {s['samples']}" if s["samples"] > 1 else ""
        parts.append(
            f"{label}: {entry['source']}, SHA-256 {entry['sha256'][:12]}, {'bf16' if entry['bf16'] else 'fp32'}; "
            f"{s['sampler']}, {s['steps']} steps, max_noise {s['max_noise']} ({entry['chosen']}); "
            f"one sample{averaged}."
        )
    parts += ["## Mean over GoPro, HIDE, RealBlur-J and REDS, each with equal weight", _table("mean", results["mean"])]
    for name, found in results["sets"].items():
        parts += [
            f"## {found['title']}",
            f"{found['data']}: {found['pictures']} of {found['of']} pictures; alignment: {found['protocol']}.",
            _table(name, found["rows"], found["pictures"]),
        ]
    for name, reason in results["missing"].items():
        parts += [f"## {name}", f"**Not there, and no number is guessed for it**: {reason}."]
    return "\n\n".join([*parts, "## Notes", "\n".join(f"- {note}" for note in _notes(results))]) + "\n"


def _table(name: str, rows: dict[str, dict], pictures: int = 0) -> str:
    lines = [f"| method | whose | {' | '.join(HEADS[m] for m in COLUMNS)} |", "|---|---|" + "---:|" * len(COLUMNS)]
    for row in PUBLISHED.get(name, ()):
        cells = [_cell({"mean": getattr(row, m)}, m) for m in COLUMNS]
        lines.append(f"| {row.method} | published: {row.source} | " + " | ".join(cells) + " |")
    for label, scores in rows.items():
        if scores:  # the sharp pictures have no row without NIQE
            cells = [_cell(scores.get(m, {}), m, pictures) for m in COLUMNS]
            lines.append(f"| {label} | **ours** | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(cell: dict, metric: str, pictures: int = 0) -> str:
    if cell.get("mean") is None:
        return "–"
    digits = 3 if metric in ("lpips", "ssim") else 2
    text = f"{cell['mean']:.{digits}f}"
    if "low" in cell:
        text += f" ± {(cell['high'] - cell['low']) / 2:.{digits}f}"
    if cell.get("sets", len(MEAN_SETS)) < len(MEAN_SETS):
        text += f" ({cell['sets']} of {len(MEAN_SETS)} sets)"
    if cell.get("subset"):
        text += " *"
    if cell.get("n", pictures) < pictures:
        text += f" ({cell['n']} of {pictures} pictures)"
    return text


def _notes(results: dict) -> list[str]:
    notes = [*NOTES, *(f"{m.upper()} has no values of ours: {reason}." for m, reason in results["unavailable"].items())]
    for found in results["sets"].values():
        cells = {(m, cell["why"]) for row in found["rows"].values() for m, cell in row.items() if "why" in cell}
        notes += sorted(f"{metric.upper()} of {found['title']}: {reason}." for metric, reason in cells)
    if results["niqe"]:
        notes.append(f"NIQE's pristine model is {results['niqe']}.")
    return notes + [f"Failed: {sentence}" for sentence in results["failures"]]
