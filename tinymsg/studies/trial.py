"""The trial: does structure guidance help in the paper's own form, judged as people see?

Written down before any of its trainings was run:

Claim. In the paper's form (eps of the image itself), trained on one family of blurs, guidance restores pictures of
*other* blurs and cameras better: LPIPS of one sample, guided against plain, averaged over MIDDLE, at the main budget.
A difference counts if Student's 95 % interval over the training runs excludes zero and its mean is at least 3 % of the
other arm's score; the two are equal if the interval lies within that margin; else it is undecided. Second, by the same
rule: guided against control (does its loss matter?), each at home, and the other forms. `verdicts` carries it out.
Robustness. More robust is what restores other blurs better *at equal quality at home* (Taori 2020): `at_equal_home`.
Setting. A form's sampler is chosen by LPIPS on validation pictures of the training domain, with the plain arm of run 0
at the main budget: of the settings within 2 % of the best, one of the fewest evaluations, of those the best. It is then
frozen for all arms, runs, budgets and domains of the form.
"""

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from ..data import DOMAINS, Batches, Domain, SyntheticPairs, make_contents, to_display
from ..evaluate import TEST_SEED, VALIDATION_SEED, domain_pairs, invented_edges, measure, variance_and_bias
from ..model import Model, Recipe
from ..sample import Setting, draw_samples, restore
from .toy import variant

# --- what is trained ------------------------------------------------------------------------------------------

# Crops of 48 pixels, so that their view of 1/8 has 6x6
BASE = Recipe().change(widths=(16, 32, 64, 64), guidance_width=24, crop=48, lr=1e-3, warmup=100, ema=0.995)
STEPS = {"main": 4000, "triple": 12000}  # optimiser steps of a budget
FORMS: dict[str, dict] = {
    "eps": {"predict": "eps", "residual": False},  # the paper's: the noise, of the image itself
    "v": {"predict": "v", "residual": False},
    "x0": {"predict": "x0", "residual": True},  # as the shipped weights: x is added back to what it predicts
}
ARMS: dict[str, dict] = {
    "plain": {"scales": ()},  # widened to as many parameters
    "control": {"target": "none"},  # the guidance branch without its loss
    "guided": {},
    "oracle": {"target": "none"},  # the branch sees y0 in the place of x, in training and at test: the headroom
}
VARIANTS: dict[str, dict] = {f"weight-{weight:g}": {"guidance_weight": weight} for weight in (0.1, 10.0, 100.0)}
VARIANTS |= {"stop-gradient": {"stop_gradient": True}}  # of guided, whose own weight is 1
CHECKPOINTS = 8  # of a training, evenly spaced


@dataclass(frozen=True)
class Training:
    """One training. Run r has seed r: all arms of a run see the same crops in the same order."""

    form: str
    arm: str
    budget: str
    run: int

    @property
    def name(self) -> str:
        """Of its files."""
        return "-".join([self.form, self.arm, *([self.budget] if self.budget != "main" else []), str(self.run)])

    @property
    def is_reference(self) -> bool:
        """Whether its form's setting is chosen with it."""
        return (self.arm, self.budget, self.run) == ("plain", "main", 0)

    def recipe(self) -> Recipe:
        """With as many parameters as the guided arm has."""
        return variant((ARMS | VARIANTS)[self.arm], STEPS[self.budget], self.run, BASE.change(**FORMS[self.form]))

    def checkpoints(self) -> list[int]:
        """The steps after which it is scored."""
        return [STEPS[self.budget] * part // CHECKPOINTS for part in range(1, CHECKPOINTS + 1)]

    def batches(self, model: Model) -> Callable[[int], tuple[Tensor, Tensor]]:
        """What `fit` learns from; an oracle's branch is shown the sharp crops."""
        c, show = self.recipe().training, self.eyes(model)
        contents = make_contents(c.content, c.content_count, seed=0)
        made = Batches(SyntheticPairs(contents, c.domain, c.seed), c.batch, c.crop)

        def batch(step: int) -> tuple[Tensor, Tensor]:
            y0, x = made(step)
            show(y0)
            return y0, x

        return batch

    def eyes(self, model: Model) -> Callable[[Tensor], None]:
        """show(y0): from then on, an oracle's guidance branch sees y0 in the place of x. The other arms never do."""
        shown: dict[str, Tensor] = {}
        if self.arm == "oracle":
            model.guidance.register_forward_pre_hook(lambda module, given: (shown["y0"],))
        return lambda y0: shown.update(y0=y0)


def plan() -> list[Training]:
    """All trainings in the order in which they are run: whenever that is stopped, the arms are balanced."""
    rounds = [("eps", "main", 0), ("eps", "main", 1), ("eps", "main", 2), ("eps", "triple", 0), ("eps", "main", 3)]
    rounds += [("v", "main", 0), ("x0", "main", 0), ("eps", "main", 4), ("v", "main", 1), ("x0", "main", 1)]
    rounds += [("eps", "triple", 1), ("v", "main", 2), ("x0", "main", 2)]
    found = [Training(form, arm, budget, run) for form, budget, run in rounds for arm in needed(form, budget)]
    found += [Training("eps", arm, "main", run) for run in (0, 1) for arm in VARIANTS]
    return found + [trial for round in rounds if (trial := Training(round[0], "oracle", *round[1:])) not in found]


def needed(form: str, budget: str) -> tuple[str, ...]:
    """The arms that a run must have to count. The headroom is measured in the paper's form; other oracles come last."""
    return tuple(arm for arm in ARMS if arm != "oracle" or (form, budget) == ("eps", "main"))


# --- where it is scored ---------------------------------------------------------------------------------------

_HOME, _SHAKE, _NOISE = (DOMAINS[name] for name in ("gopro_like", "camera_shake", "noise"))


def _lengths(domain: Domain, *lengths: tuple[float, float]) -> tuple[Domain, ...]:
    return tuple(replace(domain, motion=replace(domain.motion, length=length)) for length in lengths)


def _cameras(domain: Domain, *changes: dict) -> tuple[Domain, ...]:
    return tuple(replace(domain, camera=replace(domain.camera, **change)) for change in changes)


# One thing changed in each, in up to three degrees
LADDERS: dict[str, tuple[Domain, ...]] = {
    "home": (_HOME,),
    "longer": _lengths(_HOME, (11.0, 15.0), (15.0, 21.0), (21.0, 29.0)),
    "shake": _lengths(_SHAKE, (5.0, 11.0), (9.0, 23.0), (17.0, 35.0)),
    # Half, once and twice the standard deviations of the domain "noise"; of shot noise the variance is stated
    "noise": _cameras(_NOISE, {"shot": 0.001, "read": 0.005}, {}, {"shot": 0.016, "read": 0.02}),
    "jpeg": _cameras(_HOME, *({"jpeg_quality": quality} for quality in (60, 30, 15))),
    "night": (DOMAINS["saturated_night"],),
    "new content": (DOMAINS["new_content"],),
}
Place = tuple[str, int]  # (domain, degree from 1)
PLACES: tuple[Place, ...] = tuple((name, n + 1) for name, degrees in LADDERS.items() for n in range(len(degrees)))
HOME: Place = ("home", 1)
MIDDLE: tuple[Place, ...] = tuple((name, (len(d) + 1) // 2) for name, d in LADDERS.items() if name != "home")

SIZE = 64  # pixels a side of a test picture
FEW, ALL = 24, 72  # test pictures of a place: at every checkpoint (home and MIDDLE), and at the last one (PLACES)
SAMPLES = 4  # of each of the FEW at the last checkpoint
METRICS = ("psnr", "lpips", "ssim", "spectral")
Draw = Callable[[Tensor, Tensor, int, int], list[Tensor]]  # (y0, x, samples, seed) -> samples, each of x's shape


def drawing(trial: Training, model: Model, setting: Setting) -> Draw:
    """How the samples of a trained model are drawn."""
    show = trial.eyes(model)

    def draw(y0: Tensor, x: Tensor, samples: int, seed: int) -> list[Tensor]:
        show(y0)
        generator = torch.Generator().manual_seed(seed)
        return list(draw_samples(model, x, replace(setting, samples=samples), generator))

    return draw


def blurry(y0: Tensor, x: Tensor, samples: int, seed: int) -> list[Tensor]:
    """A Draw: the input itself."""
    return [x]


def score(draw: Draw, last: bool) -> list[dict]:
    """Rows {domain, degree, pictures, metric: mean over the pictures}; all models meet the same pictures and noise.

    Of FEW pictures, at home and in MIDDLE, psnr and lpips of one sample; at the last checkpoint of SAMPLES also
    psnr_mean, of their mean, and diversity, the V / (V + B) of `evaluate.variance_and_bias`. At the last checkpoint of
    ALL pictures, in every place, METRICS and invented_edges of one sample.
    """
    return [row for place in PLACES if last or place in (HOME, *MIDDLE) for row in _score_place(draw, place, last)]


def _score_place(draw: Draw, place: Place, last: bool) -> list[dict]:
    domain, degree = place
    main = place in (HOME, *MIDDLE)
    pairs = domain_pairs(LADDERS[domain][degree - 1], "scenes", ALL, TEST_SEED)
    rows, found = [], {}
    for index in torch.arange(ALL if last else FEW).split(FEW):
        first = main and index[0] == 0
        y0, x = pairs.crops(index, SIZE)
        drawn = draw(y0, x, SAMPLES if last and first else 1, TEST_SEED + int(index[0]))
        values = measure(drawn[0], y0, METRICS if last else METRICS[:2])
        if last:
            values["invented_edges"] = invented_edges(to_display(drawn[0]), to_display(y0)).tolist()
        for metric, scores in values.items():
            found.setdefault(metric, []).extend(scores)
        if first:
            means = {metric: statistics.fmean(values[metric]) for metric in METRICS[:2]}
            if len(drawn) > 1:
                together = torch.stack(drawn)
                means["psnr_mean"] = statistics.fmean(measure(together.mean(dim=0), y0, ("psnr",))["psnr"])
                variance, bias = (float(value.mean()) for value in variance_and_bias(together, y0))
                means["diversity"] = variance / (variance + bias)
            rows.append({"pictures": FEW} | means)
    if last:
        rows.append({"pictures": ALL} | {metric: statistics.fmean(scores) for metric, scores in found.items()})
    where = {"domain": domain, "degree": degree}
    return [where | {name: round(value, 5) for name, value in row.items()} for row in rows]


# --- a form's setting -----------------------------------------------------------------------------------------

GRID = [Setting("ancestral", n, most, "linear") for n in (5, 10, 20) for most in (0.3, 0.6, 0.9, 0.99)]
GRID += [Setting("ancestral", n, 0.99, "cosine") for n in (5, 10, 20)]
VALIDATION = 48  # pictures
SLACK = 0.02  # share of the best LPIPS


def try_settings(model: Model) -> list[dict]:
    """{"setting", "psnr", "lpips"} of every setting of GRID on validation pictures of the training domain."""
    y0, x = domain_pairs(_HOME, "scenes", VALIDATION, VALIDATION_SEED).crops(torch.arange(VALIDATION), SIZE)
    rows = []
    for setting in GRID:
        restored = restore(model, x, setting, torch.Generator().manual_seed(VALIDATION_SEED))
        means = {name: round(statistics.fmean(v), 5) for name, v in measure(restored, y0, METRICS[:2]).items()}
        rows.append({"setting": asdict(setting)} | means)
    return rows


def choose(tried: list[dict]) -> Setting:
    """The setting that the rule (above) chooses among rows of `try_settings`."""
    enough = (1 + SLACK) * min(row["lpips"] for row in tried)
    good = [row for row in tried if row["lpips"] <= enough]
    return Setting(**min(good, key=lambda row: (row["setting"]["steps"], row["lpips"]))["setting"])
