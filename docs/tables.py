"""Writes every measured number of README.md and docs/*.md from the results files: python docs/tables.py

A block stands between <!-- name --> and <!-- /name -->; BLOCKS says what belongs there. A test fails when a block is
not what this file would write, so that no number in the texts is typed by hand.
"""

import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path

from tinymsg.evaluate import student_interval as interval
from tinymsg.paper.published import PUBLISHED
from tinymsg.studies.photographs import summarise

ROOT = Path(__file__).resolve().parents[1]
TEXTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

DOMAINS = {  # of the results files, in plain words
    "gopro_like": "training blur",
    "new_content": "new content",
    "camera_shake": "camera shake",
    "noise": "noise",
    "jpeg": "JPEG compression",
    "saturated_night": "night lights",
    "all": "everything at once",
    "real": "real pairs",
}
SIGNALS = {  # test domains of the one-dimensional toy, whose training kernel is a box 9 samples wide
    "box_9": "box of 9 (training)",
    "box_5_7_11": "boxes of 5, 7, 11",
    "noise": "noise",
    "gauss": "Gaussian",
    "two_bump": "two bumps",
    "box_15": "box of 15",
}


def results(name: str) -> dict:
    return json.loads((ROOT / f"notebooks/results/{name}.json").read_text())


# --- comparisons of training runs -------------------------------------------------------------------------------


def scores(runs: list[dict], arm: str, domain: str, metric: str, kernels: int | None = None) -> dict[int, float]:
    """The mean score of each training run of an arm, by seed."""
    chosen = (run for run in runs if run["arm"] == arm and run.get("kernels") == kernels)
    return {run["seed"]: run["scores"][domain][metric]["mean"] for run in chosen}


def gains(runs: list[dict], arm: str, other: str, domain: str, metric: str, kernels: int | None = None) -> list[float]:
    """`arm` minus `other`, one value per seed."""
    a, b = (scores(runs, name, domain, metric, kernels) for name in (arm, other))
    return [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]


def differs(values: list[float]) -> bool:
    _, low, high = interval(values)
    return low > 0 or high < 0


def with_interval(values: list[float]) -> str:
    mean, low, high = interval(values)
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def each(values: list[float]) -> str:
    return ", ".join(f"{value:+.2f}" for value in values)


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def picture_runs() -> list[dict]:
    """Runs of the study's own number of steps; it also holds a few longer ones."""
    study = results("pictures")
    return [run for run in study["runs"] if run["steps"] == study["steps"]]


def headline() -> str:
    """The README's one result."""
    runs = picture_runs()
    plain, control = (
        {domain: gains(runs, "guided", other, domain, "psnr") for domain in DOMAINS}
        for other in ("plain", "guided, no loss")
    )
    held = [f"{DOMAINS[domain]} {with_interval(values)}" for domain, values in plain.items() if differs(values)]
    beyond = [DOMAINS[domain] for domain, values in control.items() if differs(values)]
    return (
        f"PSNR of guided minus plain, in dB, with 95 % intervals over {len(plain['gopro_like'])} training runs: "
        f"{', '.join(held)}; on the other {len(DOMAINS) - len(held)} test sets the interval includes zero. "
        "Against the same network trained *without* the guidance loss, guided differs measurably on "
        f"{' and '.join(beyond) or 'no test set'}."
    )


def pictures_table() -> str:
    runs, arms = picture_runs(), ["blurry", "regression", "plain", "guided", "guided, no loss"]
    rows = []
    for domain, title in DOMAINS.items():
        means = [statistics.mean(scores(runs, arm, domain, "psnr").values()) for arm in arms]
        rows.append([title, *(f"{mean:.2f}" for mean in means)])
    return table(["test set", *arms], rows)


def differences_table() -> str:
    runs = picture_runs()
    rows = []
    for domain, title in DOMAINS.items():
        plain, control = (gains(runs, "guided", other, domain, "psnr") for other in ("plain", "guided, no loss"))
        rows.append([title, with_interval(plain), each(plain), with_interval(control), each(control)])
    return table(["test set", "guided - plain", "each run", "guided - guided, no loss", "each run"], rows)


def toy_table(shown: Callable[[list[float]], str] = with_interval) -> str:
    runs = results("toy")["runs"]
    columns = [(arm, metric) for metric in ("psnr", "invented_edges") for arm in ("guided", "structure, stop-gradient")]
    rows = [
        [title, *(shown(gains(runs, arm, "plain", domain, metric)) for arm, metric in columns)]
        for domain, title in SIGNALS.items()
    ]
    head = ["test set", "guided, dB", "structure, dB", "guided, invented edges", "structure, invented edges"]
    return table(head, rows)


def toy_runs() -> str:
    return toy_table(each)


def breadth_table() -> str:
    runs = results("breadth")["runs"]
    kernels = sorted({run["kernels"] for run in runs})
    rows = [
        [f"{arm}, {domain}", *(each(gains(runs, arm, "plain", domain, "psnr", count)) for count in kernels)]
        for arm in ("guided", "structure")
        for domain in ("seen kernels", "unseen kernels", "photo rows")
    ]
    return table(["training kernels", *map(str, kernels)], rows)


# --- the shipped weights ----------------------------------------------------------------------------------------


def photographs_table() -> str:
    found = results("photographs")

    def row(title: str, means: dict, seconds: str) -> list[str]:
        cells = [f"{means[s]['psnr']['mean']:.2f}, {means[s]['lpips']['mean']:.3f}" for s in means]
        return [title, *cells, seconds]

    rows = [row(name, summarise(entry["scores"]), "") for name, entry in found["untrained"].items()]
    for label, qualities in found["quality"].items():
        for name, entry in qualities.items():
            s = entry["setting"]
            seconds = next(r["seconds_a_megapixel"] for r in found["rows"][label] if r["setting"] == s)
            setting = f"{s['sampler']}, {s['grid']}, {s['steps']} x {s['samples']}"
            title = f"{label}, {name}: {setting}{'' if entry['safe'] else ' (not safe)'}"
            rows.append(row(title, entry["scores"], f"{seconds:.1f}"))
    return table(["PSNR (dB), LPIPS", "real pairs", "everyday blur", "sharp", "s a Mpix"], rows)


def pair_by_pair() -> str:
    """What the default does to each real pair."""
    found = results("photographs")
    default = found["quality"][found["default"]]["default"]["setting"]
    chosen = next(row for row in found["rows"][found["default"]] if row["setting"] == default)
    blurry = found["untrained"]["blurry"]["scores"]["real"]["psnr"]
    change = [a - b for a, b in zip(chosen["scores"]["real"]["psnr"], blurry, strict=True)]
    return f"{', '.join(f'{c:+.2f}' for c in change)} dB"


def published_gopro() -> str:
    rows = [row for row in PUBLISHED["gopro"] if row.method in ("Restormer", "NAFNet-64", "HI-Diff")]
    return "; ".join(f"{row.method} {row.psnr:.2f} dB, LPIPS {row.lpips:.4f} ({row.source})" for row in rows)


def default_weights() -> str:
    found = results("photographs")
    scores = found["quality"][found["default"]]["default"]["scores"]
    blurry = summarise(found["untrained"]["blurry"]["scores"])
    gain = scores["real"]["psnr"]["mean"] - blurry["real"]["psnr"]["mean"]
    lpips = [rows["real"]["lpips"]["mean"] for rows in (blurry, scores)]
    return (
        f"on eight real pairs of GoPro, LPIPS goes from {lpips[0]:.3f} to {lpips[1]:.3f} (lower is better) and PSNR by "
        f"{gain:+.2f} dB; sharp photographs keep {scores['sharp']['psnr']['mean']:.0f} dB"
    )


def training_hours() -> str:
    """What the hours have brought: the validation half-way through and at the end of each part of the training."""
    rows = []
    for name in ("everyday-regression", "everyday-guided", "everyday-plain"):
        hours = 0.0
        for part in json.loads((ROOT / f"tinymsg/weights/{name}.json").read_text())["history"]:
            curve = part["curve"]
            for point in (curve[(len(curve) - 1) // 2], curve[-1]):
                spent = hours + part["hours"] * point["step"] / part["steps"]
                rows.append([name, f"{spent:.2f}", f"{point['psnr']:.2f}", f"{point['lpips']:.3f}"])
            hours += part["hours"]
    return table(["weights", "hours of a core", "PSNR", "LPIPS"], rows)


def evaluations_table() -> str:
    """One sample of the default weights under everyday blur: each sampler and grid by its number of evaluations."""
    found = results("photographs")
    rows = [row for row in found["rows"][found["default"]] if row["setting"]["samples"] == 1]
    ways: dict[str, dict[int, str]] = {}
    seconds: dict[int, list[float]] = {}
    for row in rows:
        setting, scores = row["setting"], summarise(row["scores"])["blurred"]
        cell = f"{scores['psnr']['mean']:.2f}, {scores['lpips']['mean']:.3f}"
        ways.setdefault(f"{setting['sampler']}, {setting['grid']}", {})[setting["steps"]] = cell
        seconds.setdefault(setting["steps"], []).append(row["seconds_a_megapixel"])
    return table(
        ["evaluations", *ways, "s a Mpix"],
        [[str(n), *(way.get(n, "") for way in ways.values()), f"{min(s):.1f}"] for n, s in sorted(seconds.items())],
    )


# --- speed and memory -------------------------------------------------------------------------------------------


def benchmark(name: str) -> str:
    """What a script of benchmarks/ left there: NAME.json, and its tables as NAME.md."""
    return (ROOT / "benchmarks/results" / name).read_text().strip()


def bench_tables() -> str:
    return benchmark("bench.md")


def quality_tables() -> str:
    return benchmark("quality.md")


def scale_table() -> str:
    return benchmark("scale.md").split("\n\n")[0]


def cost_table() -> str:
    return benchmark("scale.md").split("\n\n")[1]


def counted() -> str:
    counts = json.loads(benchmark("scale.json"))["counted"]
    return (
        f"{counts['gflop_a_crop']:.1f} GFLOP and {counts['bytes_a_crop'] / 1e9:.2f} GB of memory traffic per crop, "
        f"{counts['kernels']:,} kernels per step"
    )


# --- what the library knows -----------------------------------------------------------------------------------


def datasets_table() -> str:
    from tinymsg.datasets.facts import SETS

    rows = [
        [known.title, f"`{known.script}.py`", ", ".join(f"{split} {count}" for split, count in known.counts.items())]
        + [known.licence]
        for known in SETS.values()
    ]
    return table(["Data set", "Script", "Pairs (or pictures)", "Licence"], rows)


def cards_table() -> str:
    from tinymsg.training.estimate import table_text
    from tinymsg.training.profiles import profile

    return table_text(profile("full")).strip()


BLOCKS: dict[str, Callable[[], str]] = {
    "headline": headline,
    "pictures": pictures_table,
    "differences": differences_table,
    "toy": toy_table,
    "toy-runs": toy_runs,
    "breadth": breadth_table,
    "photographs": photographs_table,
    "pair-by-pair": pair_by_pair,
    "published-gopro": published_gopro,
    "default-weights": default_weights,
    "training-hours": training_hours,
    "evaluations": evaluations_table,
    "bench": bench_tables,
    "quality": quality_tables,
    "scale": scale_table,
    "cost": cost_table,
    "counted": counted,
    "datasets": datasets_table,
    "cards": cards_table,
}
_BLOCK = re.compile(r"<!-- ([\w-]+) -->(\n?).*?<!-- /\1 -->", re.S)


def filled(text: str) -> str:
    """The text with every block written anew. Raises: KeyError for a block that BLOCKS does not know."""
    return _BLOCK.sub(
        lambda found: f"<!-- {found[1]} -->{found[2]}{BLOCKS[found[1]]()}{found[2]}<!-- /{found[1]} -->", text
    )


if __name__ == "__main__":
    for path in TEXTS:
        before = path.read_text()
        if (after := filled(before)) != before:
            path.write_text(after)
            print(f"{path.relative_to(ROOT)}: written anew")
