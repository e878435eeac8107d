"""What the trial's results say: one arm against another, with intervals over training runs, and by the trial's rule.

Rows, as in results/trial.json: {form, arm, budget, run, step, domain, degree, pictures, metric: value}.
"""

import statistics
from typing import NamedTuple

import numpy as np

from ..evaluate import HIGHER_IS_BETTER, student_interval
from .trial import ALL, ARMS, FEW, HOME, MIDDLE, Place, needed

MARGIN = 0.03  # of a difference that counts: share of the other arm's score
LEAST_RUNS = 3  # for a verdict
SAMPLED = ("psnr_mean", "diversity")  # which need several samples, of FEW pictures


class Difference(NamedTuple):
    """One arm minus another, of the training runs that both have."""

    runs: dict[int, float]  # each run's
    other: float  # mean score of the other arm
    better: bool  # whether more is better

    @property
    def interval(self) -> tuple[float, float, float]:
        """(mean, low, high): Student's 95 % over the runs, at least 2."""
        return student_interval(list(self.runs.values()))

    @property
    def verdict(self) -> str:
        """better, worse, equal or undecided, by the trial's rule. Raises: ValueError for less than LEAST_RUNS runs."""
        if len(self.runs) < LEAST_RUNS:
            raise ValueError(f"{len(self.runs)} training runs tell nothing: at least {LEAST_RUNS} are needed")
        (mean, low, high), margin = self.interval, MARGIN * abs(self.other)
        if (low > 0 or high < 0) and abs(mean) >= margin:
            return "better" if (mean > 0) == self.better else "worse"
        return "equal" if -margin < low and high < margin else "undecided"

    @property
    def ruling(self) -> str:
        """The verdict for a table, whatever the number of runs."""
        n = len(self.runs)
        return self.verdict if n >= LEAST_RUNS else f"undecided: {n} training run{'s' * (n > 1)}"

    def text(self, digits: int = 3) -> str:
        """Mean, and from 2 runs on its interval."""
        shown = self.interval if len(self.runs) > 1 else tuple(self.runs.values())
        mean, *ends = (f"{value:+.{digits}f}" for value in shown)
        return f"{mean} [{', '.join(ends)}]" if ends else mean


def complete_rows(record: dict) -> list[dict]:
    """Rows of a results file, less those of runs that a needed arm still lacks: so all means are of the same runs."""
    arms: dict[tuple, set[str]] = {}
    for r in record["rows"]:
        arms.setdefault((r["form"], r["budget"], r["run"]), set()).add(r["arm"])
    whole = {key for key, found in arms.items() if found.issuperset(needed(*key[:2]))}
    return [r for r in record["rows"] if r["arm"] not in ARMS or (r["form"], r["budget"], r["run"]) in whole]


def run_scores(
    rows: list[dict], form: str, arm: str, places: tuple[Place, ...], metric: str, budget: str = "main"
) -> dict[int, float]:
    """{run: mean of a metric over some places} of an arm's last checkpoints, of ALL pictures (FEW for SAMPLED)."""
    values: dict[int, dict[Place, float]] = {}
    for row in rows:
        place = row["domain"], row["degree"]
        if place in places and metric in row and _is_of(row, form, arm, budget, FEW if metric in SAMPLED else ALL):
            values.setdefault(row["run"], {})[place] = row[metric]
    return {run: statistics.fmean(of[place] for place in places) for run, of in sorted(values.items())}


def _is_of(row: dict, form: str, arm: str, budget: str, pictures: int) -> bool:
    return (row["form"], row["arm"], row["budget"], row["pictures"]) == (form, arm, budget, pictures)


def difference(
    rows: list[dict],
    form: str,
    arm: str,
    other: str,
    places: tuple[Place, ...] = MIDDLE,
    metric: str = "lpips",
    budget: str = "main",
) -> Difference:
    """`arm` minus `other` of the runs that both have, by the mean over some places. Raises: ValueError without any."""
    a, b = (run_scores(rows, form, name, places, metric, budget) for name in (arm, other))
    if not (both := sorted(a.keys() & b.keys())):
        raise ValueError(f"no run of form {form} and budget {budget} has both {arm} and {other}")
    return Difference({r: a[r] - b[r] for r in both}, statistics.fmean(b[r] for r in both), _more_is_better(metric))


def _more_is_better(metric: str) -> bool:
    return (HIGHER_IS_BETTER | {"psnr_mean": True, "diversity": True, "invented_edges": False})[metric]


def curves(
    rows: list[dict], form: str, arm: str, places: tuple[Place, ...] = MIDDLE, metric: str = "lpips", budget="main"
) -> dict[int, list[tuple[int, float, float]]]:
    """{run: [(step, score at home, mean score over places), ...]} of every checkpoint, FEW pictures: for figures."""
    values: dict[int, dict[int, dict[Place, float]]] = {}
    for row in rows:
        if _is_of(row, form, arm, budget, FEW):
            at = values.setdefault(row["run"], {}).setdefault(row["step"], {})
            at[row["domain"], row["degree"]] = row[metric]
    return {
        run: [(step, of[HOME], statistics.fmean(of[place] for place in places)) for step, of in sorted(steps.items())]
        for run, steps in sorted(values.items())
    }


def scores_where_equal(mine: list[tuple], others: list[tuple]) -> tuple[float, float] | None:
    """Two arms' scores elsewhere where both are as good at home: where the one that ends less good there ends.

    mine, others: (score at home, score elsewhere) of each checkpoint in the order of training; less is better. Between
    checkpoints it is interpolated. None: the better one was never as bad.
    """
    meeting = max(way[-1][0] for way in (mine, others))
    ways = [np.array(sorted(way)) for way in (mine, others)]
    if not all(way[0, 0] <= meeting <= way[-1, 0] for way in ways):
        return None
    first, second = (float(np.interp(meeting, way[:, 0], way[:, 1])) for way in ways)
    return first, second


def at_equal_home(
    rows: list[dict],
    form: str,
    arm: str,
    other: str,
    places: tuple[Place, ...] = MIDDLE,
    metric: str = "lpips",
    budget: str = "main",
) -> Difference:
    """Effective robustness: `arm` minus `other` over places where both are as good at home, run by run.

    A run whose better arm has no checkpoint that is less good is left out.
    Raises: ValueError where none is left.
    """
    both = [curves(rows, form, name, places, metric, budget) for name in (arm, other)]
    better, runs, level = _more_is_better(metric), {}, []
    sign = -1 if better else 1
    for run in sorted(both[0].keys() & both[1].keys()):
        mine, others = ([(sign * home, sign * away) for _, home, away in way[run]] for way in both)
        if (found := scores_where_equal(mine, others)) is not None:
            runs[run] = sign * (found[0] - found[1])
            level.append(sign * found[1])
    if not runs:
        raise ValueError(
            f"no run of form {form} and budget {budget} has {arm} and {other} equally good on the training blur"
        )
    return Difference(runs, statistics.fmean(level), better)
