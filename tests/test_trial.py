"""The trial: fair arms, ladders of test sets, scores, one results file whatever happens, verdicts by its rule."""

from dataclasses import asdict

import pytest
import torch
from conftest import TINY

from tinymsg import model
from tinymsg.cli import main
from tinymsg.evaluate import read_results
from tinymsg.model import Model, build_model, count_parameters
from tinymsg.rng import Draws
from tinymsg.sample import Setting
from tinymsg.studies import running, trial, verdicts
from tinymsg.studies.__main__ import parser
from tinymsg.studies.trial import ALL, ARMS, FEW, HOME, LADDERS, MIDDLE, STEPS, VARIANTS, Training, plan

# --- what is trained ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", trial.FORMS)
def test_arms_have_as_many_parameters(form):
    with torch.device("meta"):
        sizes = {arm: count_parameters(Model(Training(form, arm, "main", 0).recipe().network)) for arm in ARMS}
    assert max(sizes.values()) < 1.01 * min(sizes.values())


def test_the_plan_is_balanced_whenever_it_is_stopped():
    trials = plan()
    assert len(set(trials)) == len({t.name for t in trials}) == len(trials)
    for done in range(len(trials) + 1):
        runs = {}
        for t in trials[:done]:
            runs.setdefault((t.form, t.budget), dict.fromkeys(ARMS | VARIANTS, 0))[t.arm] += 1
        for key, of in runs.items():
            counts = [of[arm] for arm in trial.needed(*key)]
            assert max(counts) - min(counts) <= 1
    count = {}
    for t in trials:
        count[t.form, t.arm, t.budget] = count.get((t.form, t.arm, t.budget), 0) + 1
    assert {count["eps", arm, "main"] for arm in ARMS} == {5} and {count["eps", a, "triple"] for a in ARMS} == {2}
    assert {count[form, arm, "main"] for form in ("v", "x0") for arm in ARMS} == {3}
    assert {count["eps", arm, "main"] for arm in VARIANTS} == {2}
    for form in trial.FORMS:
        assert next(t for t in trials if t.form == form).is_reference


@pytest.fixture
def micro(monkeypatch, tmp_path):
    """Trainings of eight steps, scored on four pictures in three places."""
    small = {name: value for name, value in TINY.items() if name != "steps"}
    monkeypatch.setattr(trial, "BASE", trial.BASE.change(**small))
    monkeypatch.setattr(trial, "PLACES", (HOME, ("shake", 2), ("noise", 3)))
    for name, value in {"SIZE": 32, "FEW": 2, "ALL": 4, "SAMPLES": 2, "VALIDATION": 2}.items():
        monkeypatch.setattr(trial, name, value)
    monkeypatch.setattr(trial, "GRID", [Setting("ancestral", n, 0.9) for n in (1, 2)])
    for budget in STEPS:
        monkeypatch.setitem(STEPS, budget, 8)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_all_arms_of_a_run_see_the_same_crops(micro):
    def crops(arm, run):
        one = Training("eps", arm, "main", run)
        return torch.stack(one.batches(build_model(one.recipe().network))(5))

    assert all(torch.equal(crops("plain", 1), crops(arm, 1)) for arm in ARMS)
    assert not torch.equal(crops("plain", 1), crops("plain", 2))


def test_an_oracles_branch_sees_the_truth_and_no_others_does(micro, images):
    y0, x = images()
    for arm in ("control", "oracle"):
        one = Training("eps", arm, "main", 0)
        model = build_model(one.recipe().network)
        expected = model.guidance(y0 if arm == "oracle" else x)[0].add
        show = one.eyes(model)
        show(-y0)
        show(y0)
        seen = model.guidance(x)[0].add
        assert all(torch.equal(seen[k], expected[k]) for k in expected)


# --- where it is scored ---------------------------------------------------------------------------------------


def test_each_degree_of_a_ladder_is_harder():
    for degrees in LADDERS.values():
        scores = []
        for domain in degrees:
            y0, x = trial.domain_pairs(domain, "scenes", 8, 3).crops(torch.arange(8), trial.SIZE)
            scores.append(trial.measure(x, y0, ("psnr",))["psnr"])
        means = [sum(values) / 8 for values in scores]
        assert means == sorted(means, reverse=True) and len(set(means)) == len(means)


def test_no_light_comes_from_beyond_a_scene():
    for degrees in LADDERS.values():
        for domain in degrees:
            margin = domain.margin(trial.SIZE)
            assert domain.motion.draw(Draws(0, torch.arange(400)))[..., :2].abs().max() < margin
            assert trial.SIZE + 2 * margin <= 128


def test_the_blurry_input_is_scored_without_samples(micro):
    rows = trial.score(trial.blurry, last=True)
    assert [(row["domain"], row["degree"], row["pictures"]) for row in rows] == [
        ("home", 1, 2), ("home", 1, 4), ("shake", 2, 2), ("shake", 2, 4), ("noise", 3, 4)
    ]  # fmt: skip
    assert all("diversity" not in row for row in rows)
    few, every = trial.score(trial.blurry, last=False), rows[1]
    assert few == [rows[0], rows[2]] and set(every) > {"psnr", "lpips", "ssim", "spectral", "invented_edges"}


def test_scores_of_samples(micro):
    """Of samples at random about half the truth, the mean is better, and what it still lacks is bias."""

    def draw(y0, x, samples, seed):
        noise = torch.randn(samples, *x.shape, generator=torch.Generator().manual_seed(seed))
        return list((y0 * 0.5 + 0.1 * noise).unbind())

    row = next(row for row in trial.score(draw, last=True) if "diversity" in row)
    assert row["psnr_mean"] > row["psnr"] and 0 < row["diversity"] < 0.5


def test_the_setting_is_the_shortest_of_the_good_ones():
    def tried(steps, most, lpips):
        return {"setting": asdict(Setting("ancestral", steps, most)), "lpips": lpips, "psnr": 0.0}

    rows = [tried(20, 0.3, 0.1), tried(10, 0.6, 0.1015), tried(10, 0.9, 0.101), tried(5, 0.9, 0.11)]
    assert trial.choose(rows) == Setting("ancestral", 10, 0.9)
    assert trial.choose(rows[:2][::-1] + [tried(20, 0.9, 0.09)]) == Setting("ancestral", 20, 0.9)


# --- the command ----------------------------------------------------------------------------------------------


def call(out, *options) -> int:
    command = ["trial", "--out", out, "--form", "eps", "--budget", "main", "--run", "0", "--workers", "1", *options]
    return main(command, top=parser())


def test_a_trial_that_is_killed_gives_the_same_numbers(micro, monkeypatch, capsys):
    assert call("whole.json", "--arm", "plain", "oracle") == 0
    whole = read_results("whole.json")
    assert [key.name for key in map(running.key, whole["trainings"])] == ["eps-plain-0", "eps-oracle-0"]
    steps = [row["step"] for row in whole["rows"] if row["arm"] == "oracle" and row["domain"] == "noise"]
    assert steps == [8] and {row["step"] for row in whole["rows"] if row["arm"] == "plain"} == set(range(1, 9))

    def dying(state, batches):
        for record in honest(state, batches):
            yield record
            if record.step == 5:
                raise KeyboardInterrupt

    honest = running.fit
    with monkeypatch.context() as patch:
        patch.setattr(running, "SAVE_MINUTES", 0)  # a checkpoint after every step but the one that is interrupted
        patch.setattr(running, "fit", dying)
        assert call("killed.json", "--arm", "plain", "oracle") == 130
    (saved,) = (micro / "runs/killed/eps-plain-0").glob("checkpoint-00000005.pt")
    assert call("killed.json", "--arm", "plain", "oracle") == 0
    again = read_results("killed.json")
    assert again["rows"] == whole["rows"] and again["settings"] == whole["settings"] and not saved.exists()

    # One arm, without the reference: the setting comes from the other file
    assert call("other.json", "--arm", "oracle") == 2
    assert "--settings" in capsys.readouterr().err
    assert call("other.json", "--arm", "oracle", "--settings", "whole.json") == 0
    mine = [row for row in read_results("other.json")["rows"] if row["arm"] == "oracle"]
    assert mine == [row for row in whole["rows"] if row["arm"] == "oracle"]
    assert call("whole.json", "--arm", "plain") == 0 and read_results("whole.json")["rows"] == whole["rows"]


def test_weights_of_the_main_arms_are_shipped_with_their_cards(micro, monkeypatch):
    for module in (running, model):
        monkeypatch.setattr(module, "WEIGHTS", micro / "shelf")
    (micro / "shelf").mkdir()
    assert call("a.json", "--arm", "plain", "guided") == 0 and call("a.json", "--ship") == 0
    assert model.pretrained_names() == ["trial-guided", "trial-plain"]
    for name in model.pretrained_names():
        card = model.model_card(name)
        assert card["parameters"] == count_parameters(model.pretrained(name)) and card["steps"] == 8
        lpips = card["scores"]["home 1"][name.split("-")[1]]["lpips"]["mean"]
        assert lpips in [row["lpips"] for row in read_results("a.json")["rows"] if row.get("pictures") == trial.ALL]


def test_the_command_says_what_does_not_fit(micro, monkeypatch, capsys):
    assert call("a.json", "--arm", "nonsense") == 2
    assert "known: plain" in capsys.readouterr().err
    assert call("a.json", "--arm", "plain") == 0
    monkeypatch.setattr(trial, "FEW", 1)
    assert call("a.json", "--arm", "guided") == 2
    assert "FEW" in capsys.readouterr().err


def test_a_training_that_breaks_off_stops_no_other(micro, monkeypatch):
    def breaking(state, batches):
        if state.network.target == "none":
            raise running.NotFiniteError("broken")
        return honest(state, batches)

    honest = running.fit
    monkeypatch.setattr(running, "fit", breaking)
    assert call("a.json", "--arm", "plain", "control") == 0
    entries = read_results("a.json")["trainings"]
    assert [entry.get("failed") for entry in entries] == [None, "broken"]


# --- verdicts -------------------------------------------------------------------------------------------------


def row(arm, run, value, place, step=8, pictures=ALL):
    key = {"form": "eps", "arm": arm, "budget": "main", "run": run, "step": step}
    return key | {"domain": place[0], "degree": place[1], "pictures": pictures, "lpips": value, "psnr": -value}


def rows_of(values: dict[str, list[float]]) -> list[dict]:
    return [row(arm, run, v, place) for arm, of in values.items() for run, v in enumerate(of) for place in MIDDLE]


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([0.90, 0.91, 0.89], "better"),
        ([1.10, 1.11, 1.09], "worse"),
        ([1.001, 1.0, 0.999], "equal"),
        ([0.98, 0.981, 0.979], "equal"),  # sure, and less than the margin
        ([0.8, 1.0, 0.7], "undecided"),
    ],
)
def test_verdicts(values, verdict):
    rows = rows_of({"guided": values, "plain": [1.0] * 3})
    found = verdicts.difference(rows, "eps", "guided", "plain")
    assert found.verdict == verdict and list(found.runs) == [0, 1, 2]
    assert found.interval[0] == pytest.approx(sum(values) / 3 - 1)
    turned = verdicts.difference(rows, "eps", "guided", "plain", metric="psnr")  # of which more is better
    assert turned.verdict == verdict


def test_two_runs_give_no_verdict():
    rows = rows_of({"guided": [1.0, 2.0, 3.0], "plain": [1.0, 1.0]})
    found = verdicts.difference(rows, "eps", "guided", "plain")
    assert found.runs == {0: 0.0, 1: 1.0}
    with pytest.raises(ValueError, match="3"):
        found.verdict  # noqa: B018
    assert found.ruling == "undecided: 2 training runs" and found.text(1) == "+0.5 [-5.9, +6.9]"
    assert verdicts.Difference({3: -0.25}, 1.0, False).text(2) == "-0.25"
    with pytest.raises(ValueError, match="oracle"):
        verdicts.difference(rows, "eps", "guided", "oracle")


def test_rounds_that_lack_an_arm_are_left_out():
    rows = rows_of({arm: [1.0, 1.0] if arm == "plain" else [1.0] for arm in (*ARMS, "weight-10", "blurry")})
    kept = verdicts.complete_rows({"rows": rows})
    assert {row["run"] for row in kept} == {0} and {row["arm"] for row in kept} == {*ARMS, "weight-10", "blurry"}
    others = [row | {"form": "v"} for row in rows]  # whose headroom is not asked
    assert verdicts.complete_rows({"rows": [row for row in others if row["arm"] != "oracle"]})
    assert not verdicts.complete_rows({"rows": [row for row in others if row["arm"] in ("plain", "guided")]})


def curve(arm, points):
    return [
        row(arm, 0, value, place, step, FEW)
        for step, (home, away) in enumerate(points)
        for place, value in ((HOME, home), *((place, away) for place in MIDDLE))
    ]


def test_at_equal_home_speed_is_no_robustness():
    """An arm that moves faster along the same line is not more robust; one on a lower line is, by their distance."""
    slow = curve("plain", [(0.5, 0.6), (0.4, 0.5), (0.3, 0.4)])
    fast = curve("guided", [(0.45, 0.55), (0.25, 0.35), (0.2, 0.3)])
    other = curve("oracle", [(0.45, 0.45), (0.25, 0.25), (0.2, 0.2)])
    for metric, sign in (("lpips", 1), ("psnr", -1)):
        along = verdicts.at_equal_home(slow + fast, "eps", "guided", "plain", metric=metric)
        assert along.runs[0] == pytest.approx(0, abs=1e-9) and along.other == pytest.approx(sign * 0.4)
        below = verdicts.at_equal_home(slow + other, "eps", "oracle", "plain", metric=metric)
        assert below.runs[0] == pytest.approx(-sign * 0.1)
    apart = curve("guided", [(0.2, 0.3), (0.1, 0.2)])  # never as bad at home
    with pytest.raises(ValueError, match="equally good"):
        verdicts.at_equal_home(slow + apart, "eps", "guided", "plain")
