"""Writes every measured number of README.md and docs/*.md from the results files: python docs/tables.py

A block stands between <!-- name --> and <!-- /name -->; BLOCKS says what belongs there. A test fails when a block is
not what this file would write, so that no number in the texts is typed by hand.
"""

import contextlib
import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path

from tinymsg.evaluate import student_interval as interval
from tinymsg.paper.published import PUBLISHED
from tinymsg.studies.photographs import mean
from tinymsg.studies.trial import FORMS, HOME, MIDDLE, VARIANTS
from tinymsg.studies.verdicts import Difference, at_equal_home, complete_rows, difference, run_scores

ROOT = Path(__file__).resolve().parents[1]
TEXTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

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


def with_interval(values: list[float]) -> str:
    mean, low, high = interval(values)
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def each(values: list[float], digits: int = 2) -> str:
    return ", ".join(f"{value:+.{digits}f}" for value in values)


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


# --- the trial: any number of training runs, of what forms and budgets there are ---------------------------------

ARMS = ("plain", "control", "guided", "oracle")
PLACES = {"six other test sets, mean": MIDDLE, "training blur": (HOME,)} | {name: ((name, n),) for name, n in MIDDLE}
ELSEWHERE, AT_HOME = tuple(PLACES)[:2]


def trial() -> list[dict]:
    return complete_rows(results("trial"))


def gap(other: str, form: str = "eps", arm: str = "guided", **options) -> Difference:
    """Guided, or another arm, minus another. Raises: ValueError if no run has both."""
    return difference(trial(), form, arm, other, **options)


def ruled(found: Difference, digits: int = 3) -> list[str]:
    """Difference, each run and verdict, as cells of a table."""
    return [found.text(digits), each(list(found.runs.values()), digits), found.ruling]


def headline() -> str:
    """The README's one result."""
    plain, control, triple = gap("plain"), gap("control"), gap("plain", budget="triple")
    return (
        "In the paper's form, guided minus plain in LPIPS (lower is better) on six test sets unlike the training set: "
        f"{plain.text()}, {plain.ruling}, {len(plain.runs)} training run{'s' * (len(plain.runs) > 1)} (plain: "
        f"{plain.other:.3f}). Against the same branch without its loss: {control.text()}, {control.ruling}. "
        f"{equal_home()} (There the better arm is taken earlier, which favours the other.) After three times the "
        f"steps: {triple.text()}, {triple.ruling}. Asked for the residual, not the noise, plain alone reaches "
        f"{level('x0', 'plain', 'main', ELSEWHERE)}."
    )


def level(form: str, arm: str, budget: str, where: str) -> str:
    """LPIPS of an arm, mean over its training runs."""
    runs = run_scores(trial(), form, arm, PLACES[where], "lpips", budget)
    return f"{statistics.mean(runs.values()):.3f}" if runs else ""


def trial_scores() -> str:
    kinds = [("", "blurry", ""), *(("eps", arm, "main") for arm in ARMS)]
    return table(["LPIPS", "blurry", *ARMS], [[where, *(level(*kind, where) for kind in kinds)] for where in PLACES])


def trial_levels() -> str:
    """The forms side by side: what they change for every arm."""
    arms, kinds = ("plain", "control", "guided"), [*((form, "main") for form in FORMS), ("eps", "triple")]
    rows = [
        [form + ", three times the steps" * (budget == "triple")]
        + [level(form, arm, budget, where) for where in (AT_HOME, ELSEWHERE) for arm in arms]
        for form, budget in kinds
    ]
    return table(["LPIPS", *(f"{where}: {arm}" for where in (AT_HOME, ELSEWHERE) for arm in arms)], rows)


def trial_differences() -> str:
    rows = [
        [title, *(cell for other in ("plain", "control") for cell in ruled(gap(other, places=places)))]
        for title, places in PLACES.items()
    ]
    return table(["LPIPS", "guided - plain", "each run", "verdict", "guided - control", "each run", "verdict"], rows)


def trial_beside() -> str:
    """Other measures, of guided against plain."""
    metrics = {
        "PSNR, dB": "psnr",
        "SSIM": "ssim",
        "share of invented edges": "invented_edges",
        "diversity": "diversity",
    }
    rows = [
        [f"{title}, {where}", *ruled(gap("plain", places=PLACES[where], metric=metric))[: 3 - (metric == "psnr")]]
        for title, metric in metrics.items()
        for where in (AT_HOME, ELSEWHERE)
    ]
    return table(["", "guided - plain", "each run", "verdict"], rows)


def equal_home() -> str:
    """Effective robustness, in a sentence."""
    found = {other: at_equal_home(trial(), "eps", "guided", other) for other in ("plain", "control")}
    said = (f"guided minus {other} {d.text()}, {d.ruling}" for other, d in found.items())
    return f"At equal quality on the training blur: {'; '.join(said)}."


def trial_forms() -> str:
    """Where guidance has more or less to give: forms, the longer training, and variants of guided."""
    pairs = [(form, other) for form in FORMS for other in ("plain", "control")]
    lines = {f"{form}, guided - {other}": {"other": other, "form": form} for form, other in pairs}
    long = {"form": "eps", "budget": "triple"}
    lines |= {
        f"eps, three times the steps, guided - {other}": {"other": other} | long for other in ("plain", "control")
    }
    lines |= {f"eps, {arm.replace('-', ' ')} - guided": {"other": "guided", "arm": arm} for arm in VARIANTS}
    rows = []
    for title, of in lines.items():
        with contextlib.suppress(ValueError):  # not trained: the variants were the first to go
            parts = [ruled(gap(**of, places=PLACES[where])) for where in (AT_HOME, ELSEWHERE)]
            rows.append([title, *parts[0], *parts[1]])
    return table(["LPIPS", AT_HOME, "each run", "verdict", ELSEWHERE, "each run", "verdict"], rows)


def lessons_networks() -> str:
    rows, names = [], ("blurry", "guided", "plain", "regression")
    for domain, entry in results("scores")["domains"].items():
        means = [[entry["scores"][name][metric]["mean"] for metric in ("psnr", "lpips")] for name in names]
        rows.append([domain.replace("_", " "), *(f"{psnr:.2f}, {lpips:.3f}" for psnr, lpips in means)])
    return table(["PSNR (dB), LPIPS", *names], rows)


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
        for arm in dict.fromkeys(run["arm"] for run in runs)
        if arm in ("guided", "structure", "structure, stop-gradient")
        for domain in ("seen kernels", "unseen kernels", "photo rows")
    ]
    return table(["training kernels", *map(str, kernels)], rows)


# --- the shipped weights ----------------------------------------------------------------------------------------


def photographs_table() -> str:
    found = results("photographs")

    def row(title: str, entry: dict, seconds: str) -> list[str]:
        return [title, *(both(entry, which) for which in entry["scores"]), seconds]

    rows = [row(name, entry, "") for name, entry in found["untrained"].items()]
    for label, qualities in found["quality"].items():
        for name, entry in qualities.items():
            s = entry["setting"]
            chosen = next(r for r in found["rows"][label] if r["setting"] == s)
            first = f"the regression's answer, then up to {s['max_noise']:g}: " if s.get("start") else ""
            setting = f"{first}{s['sampler']}, {s['grid']}, {s['steps']} x {s['samples']}"
            title = f"{label}, {name}: {setting}{'' if entry['safe'] else ' (not safe)'}"
            rows.append(row(title, chosen, f"{chosen['seconds_a_megapixel']:.1f}"))
    return table(["PSNR (dB), LPIPS", "real pairs", "everyday blur", "sharp", "s per Mpix"], rows)


def both(row: dict, which: str) -> str:
    """PSNR, LPIPS of a set."""
    return f"{mean(row, which, 'psnr'):.2f}, {mean(row, which, 'lpips'):.3f}"


def default_row() -> dict:
    found = results("photographs")
    chosen = found["quality"][found["default"]]["default"]["setting"]
    return next(row for row in found["rows"][found["default"]] if row["setting"] == chosen)


def pair_by_pair() -> str:
    """What the default does to each real pair."""
    found, chosen = results("photographs"), default_row()
    blurry = found["untrained"]["blurry"]["scores"]["real"]["psnr"]
    change = [a - b for a, b in zip(chosen["scores"]["real"]["psnr"], blurry, strict=True)]
    return f"{', '.join(f'{c:+.2f}' for c in change)} dB"


def published_gopro() -> str:
    rows = [row for row in PUBLISHED["gopro"] if row.method in ("Restormer", "NAFNet-64", "HI-Diff")]
    return "; ".join(f"{row.method} {row.psnr:.2f} dB, LPIPS {row.lpips:.4f} ({row.source})" for row in rows)


def default_weights() -> str:
    blurry, chosen = results("photographs")["untrained"]["blurry"], default_row()
    lpips = " becomes ".join(f"{mean(row, 'real', 'lpips'):.3f}" for row in (blurry, chosen))
    gain = mean(chosen, "real", "psnr") - mean(blurry, "real", "psnr")
    return (
        f"on eight real GoPro pairs, LPIPS {lpips}, PSNR {gain:+.2f} dB; "
        f"sharp photographs keep {mean(chosen, 'sharp', 'psnr'):.0f} dB on average, at worst "
        f"{min(chosen['scores']['sharp']['psnr']):.0f}"
    )


def training_hours() -> str:
    """What the hours have brought: the validation half-way through and at the end of each part of the training."""
    rows = []
    for name in ("everyday-regression", "everyday-plain"):
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
    rows = [row for row in rows if not row["setting"].get("start")]
    ways: dict[str, dict[int, str]] = {}
    seconds: dict[int, list[float]] = {}
    for row in rows:
        setting = row["setting"]
        ways.setdefault(f"{setting['sampler']}, {setting['grid']}", {})[setting["steps"]] = both(row, "blurred")
        seconds.setdefault(setting["steps"], []).append(row["seconds_a_megapixel"])
    return table(
        ["evaluations", *ways, "s per Mpix"],
        [[str(n), *(way.get(n, "") for way in ways.values()), f"{min(s):.1f}"] for n, s in sorted(seconds.items())],
    )


def refine_table() -> str:
    """Predict and refine, on the real pairs and sharp pictures, by the refiner's evaluations and noise."""
    found = results("photographs")
    rows = [row for row in found["rows"]["plain"] if row["setting"].get("start")]
    noise = sorted({row["setting"]["max_noise"] for row in rows})
    cells: dict[int, list[str]] = {}
    for row in sorted(rows, key=lambda row: (row["setting"]["steps"], row["setting"]["max_noise"])):
        cells.setdefault(row["setting"]["steps"], []).append(f"{both(row, 'real')}; {mean(row, 'sharp', 'psnr'):.0f}")
    return table(
        ["evaluations after the regression's", *map("max_noise {:g}".format, noise)],
        [[str(n), *c] for n, c in cells.items()],
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


def memory_table() -> str:
    found = json.loads(benchmark("memory.json"))
    names = {"size": "picture", "tile": "tile", "peak_GB": "peak, GB", "growth": "bytes for each pixel more"}
    rows = [[str(row[name] or "") for name in names] for row in found["rows"]]
    return table(list(names.values()), rows) + f"\n\n{found['where']}, PyTorch {found['torch']}."


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
    "trial-scores": trial_scores,
    "trial-differences": trial_differences,
    "trial-equal-home": equal_home,
    "trial-beside": trial_beside,
    "trial-levels": trial_levels,
    "trial-forms": trial_forms,
    "lessons-networks": lessons_networks,
    "toy": toy_table,
    "toy-runs": toy_runs,
    "breadth": breadth_table,
    "photographs": photographs_table,
    "pair-by-pair": pair_by_pair,
    "published-gopro": published_gopro,
    "default-weights": default_weights,
    "training-hours": training_hours,
    "evaluations": evaluations_table,
    "refine": refine_table,
    "bench": bench_tables,
    "memory": memory_table,
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
