"""The paper's table: our scores beside published ones, each marked ours or published, and what is missing said."""

import math
from pathlib import Path

from ..evaluate import summary
from .protocol import SETS, Evaluation, Row, TestSet
from .published import COLUMNS, PUBLISHED

DIGITS = {"lpips": 3, "niqe": 2, "fid": 2, "kid": 2, "psnr": 2, "ssim": 3}
HEADS = {"lpips": "LPIPS ↓", "niqe": "NIQE ↓", "fid": "FID ↓", "kid": "KID×1000 ↓", "psnr": "PSNR ↑", "ssim": "SSIM ↑"}
PROTOCOL_TEXT = {
    "plain": "pixel on pixel",
    "realblur": "PSNR and SSIM after RealBlur's own alignment (intensity, ECC homography, mask); LPIPS without it",
    "shift": "PSNR and SSIM at the best whole-pixel shift; LPIPS without it",
    "kohler": "PSNR and SSIM of the best sharp frame of the exposure, after intensity and whole-pixel shift",
}
NOTES = (
    "`*` of fewer pictures than the whole sets: not comparable with published means.",
    "FID and KID by torch-fidelity, on whole pictures (resized to 299x299); what the paper and DvSR did is not known.",
    "LPIPS: AlexNet, version 0.1. All scores are of 8-bit pictures; equal pictures count 100 dB.",
    "NIQE depends on implementation and parameters (MPRNet on GoPro: 4.09 in DvSR, 5.16 in OSDD).",
    "Published KID is taken to be times 1000, as DvSR's is.",
    "Published GoPro scores are, as far as is known, of its `blur`, not `blur_gamma`.",
    "Others give DeblurGAN-v2 GoPro 29.55/0.934 and HIDE 26.61/0.875.",
    "Which part of REDS the paper used is not known; reds_val300 (compressed, 300 pictures) is our choice.",
)


def collect(evaluation: Evaluation, test: TestSet, rows: list[Row]) -> dict:
    """What a results file says of a set that was run; its FID and KID are computed here."""
    table = {}
    for row in rows:
        known = [evaluation.scores(test, row, pair) for pair in test.pairs]
        table[row.label] = evaluation.score_whole_set(test, row)
        for metric in evaluation.wanted(row):
            found = [scores[metric] for scores in known if metric in scores]
            numbers = [float(value) for value in found if not isinstance(value, str)]
            reason = found[0] if found else "no picture was scored"
            table[row.label][metric] = describe(numbers) if numbers else {"n": 0, "why": reason}
    return {
        "title": test.title,
        "data": Path(test.identity).name,
        "pictures": len(test.pairs),
        "of": test.total,
        "protocol": test.protocol,
        "rows": table,
    }


def describe(numbers: list[float]) -> dict:
    """Mean over pictures, its 95 % bootstrap interval (from two pictures on), and how many they are."""
    found = summary(numbers) if len(numbers) > 1 else {"mean": round(numbers[0], 4)}
    return found | {"n": len(numbers)}


def mean_over_sets(sets: dict[str, dict]) -> dict[str, dict]:
    """Row -> metric -> mean over the paper's four sets, each with equal weight, as in its Table 3.

    `sets` says over how many, `subset` whether pictures are left out. The sets' intervals, independent of each other,
    add as squares; FID and KID, one number a set, have none.
    """
    chosen = [name for name in (*SETS[:3], SETS[3] if SETS[3] in sets else "reds") if name in sets]
    means: dict[str, dict] = {}
    for row in dict.fromkeys(row for name in chosen for row in sets[name]["rows"]):
        means[row] = {}
        for metric in COLUMNS:
            cells = {name: sets[name]["rows"].get(row, {}).get(metric, {}) for name in chosen}
            cells = {name: cell for name, cell in cells.items() if "mean" in cell}
            if not cells:
                continue
            mean = sum(cell["mean"] for cell in cells.values()) / len(cells)
            means[row][metric] = {"mean": round(mean, 4)}
            if all("low" in cell for cell in cells.values()):
                half = math.hypot(*((cell["high"] - cell["low"]) / 2 for cell in cells.values())) / len(cells)
                means[row][metric] |= {"low": round(mean - half, 4), "high": round(mean + half, 4)}
            subset = any(cell["n"] < sets[name]["of"] for name, cell in cells.items())
            means[row][metric] |= {"sets": len(cells), "subset": subset}
    return means


def markdown(results: dict) -> str:
    """All tables of a results file, as the `paper` command writes it, as one Markdown text."""
    parts = [
        "# GoPro-trained deblurring: our scores beside published ones",
        "The column *whose* says of each row whether it was measured here (**ours**) or published, and where.",
        "± is half the width of the 95 % bootstrap interval over pictures.",
    ]
    for label, entry in results["settings"].items():
        s = entry["setting"]
        averaged = f", `{label}-SA` the mean of {s['samples']}" if s["samples"] > 1 else ""
        parts.append(
            f"{label}: {entry['source']}, SHA-256 {entry['sha256'][:12]}, {'bf16' if entry['bf16'] else 'fp32'}; "
            f"{s['sampler']}, {s['steps']} steps, max_noise {s['max_noise']} ({entry['chosen']}); `{label}` is one "
            f"sample{averaged}."
        )
    parts += [
        "## Mean over GoPro, HIDE, RealBlur-J and REDS, each with equal weight (the form of Ren 2023, Table 3)",
        _table("mean", results["mean"]),
    ]
    for name, found in results["sets"].items():
        pictures = f"{found['pictures']} pictures"
        if found["pictures"] < found["of"]:
            pictures = f"**only {found['pictures']} of {found['of']} pictures**"
        parts += [
            f"## {found['title']}",
            f"Data: {found['data']}; {pictures}; {PROTOCOL_TEXT[found['protocol']]}.",
            _table(name, found["rows"], found["pictures"]),
        ]
    for name, reason in results["missing"].items():
        parts += [f"## {name}", f"**Not there, and no number is guessed for it**: {reason}."]
    return "\n\n".join([*parts, "## Notes", "\n".join(f"- {note}" for note in _notes(results))]) + "\n"


def _table(name: str, rows: dict[str, dict], pictures: int = 0) -> str:
    lines = ["| method | whose | " + " | ".join(HEADS[m] for m in COLUMNS) + " |", "|---|---|" + "---:|" * len(COLUMNS)]
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
    digits = DIGITS[metric]
    text = f"{cell['mean']:.{digits}f}"
    if "low" in cell:
        text += f" ± {(cell['high'] - cell['low']) / 2:.{digits}f}"
    if cell.get("sets", len(SETS)) < len(SETS):
        text += f" ({cell['sets']} of {len(SETS)} sets)"
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
