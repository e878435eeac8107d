import itertools
import json
import math
import sys
import warnings
from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from jaxtyping import TypeCheckError

from tinymsg import __version__
from tinymsg import evaluate as ev
from tinymsg.data import SyntheticPairs, photo, scene_contents, to_display
from tinymsg.evaluate import (
    HIGHER_IS_BETTER,
    IDENTICAL,
    METRICS,
    MetricUnavailable,
    available,
    best_cell,
    bootstrap_interval,
    choose_cell,
    differences,
    domain_pairs,
    evaluate,
    grid_search,
    lpips_distance,
    measure,
    nested_interval,
    provenance,
    psnr,
    radial_spectrum,
    read_results,
    sample_and_mean,
    sign_flip_p,
    spectral_distance,
    ssim,
    summary,
    table,
    write_results,
)
from tinymsg.sample import Setting, restore
from tinymsg.schedule import linear

SETTING = Setting("ddim", steps=2, max_noise=0.9, samples=2)


@pytest.fixture(scope="module")
def photographs() -> torch.Tensor:
    """(3, 3, 64, 64) pieces of real photographs, display values."""
    return torch.stack([photo(name)[:, 100:164, 120:184] for name in ("astronaut", "chelsea", "coffee")]).float() / 255


@pytest.fixture
def pairs() -> SyntheticPairs:
    return SyntheticPairs(scene_contents(8), "gopro_like", seed=3)


@pytest.fixture
def random_lpips(monkeypatch):
    """LPIPS without its download: the plumbing with random weights."""
    monkeypatch.setitem(METRICS, "lpips", lambda a, b: lpips_distance(a, b, random_weights=True))


# --- metrics ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METRICS)
def test_metric_contract(name, photographs, random_lpips, device):
    """One score an image; identical is best; more blur is worse; rows do not mix; signals of one channel too."""
    metric = METRICS[name]
    truth = photographs.to(device)
    blurs = [F.avg_pool2d(F.pad(truth, (r,) * 4, mode="reflect"), 2 * r + 1, stride=1) for r in (1, 3)]
    same, little, much = (metric(image, truth) for image in (truth, *blurs))
    assert same.shape == little.shape == (3,) and little.device.type == device.type
    if HIGHER_IS_BETTER[name]:
        assert (same > little).all() and (little > much).all()
    else:
        assert (same.abs() < 1e-5).all() and (same < little).all() and (little < much).all()
    torch.testing.assert_close(metric(blurs[0][1:2], truth[1:2]), little[1:2], rtol=1e-3, atol=1e-4)
    assert metric(blurs[0][:, :1], truth[:, :1]).shape == (3,)


def test_metrics_and_their_directions_go_together():
    assert METRICS.keys() == HIGHER_IS_BETTER.keys()


def test_psnr_closed_form():
    truth = torch.zeros(3, 3, 4, 4)
    estimate = torch.tensor([0.1, 0.01, 0.0])[:, None, None, None].expand_as(truth)
    torch.testing.assert_close(psnr(estimate, truth)[:2], torch.tensor([20.0, 40.0]))
    assert psnr(estimate, truth)[2] == math.inf


def test_ssim_is_one_for_identical_and_known_for_constants(photographs):
    torch.testing.assert_close(ssim(photographs, photographs), torch.ones(3))
    a, b = torch.full((1, 3, 32, 32), 0.4), torch.full((1, 3, 32, 32), 0.6)
    c1 = 0.01**2  # Wang 2004, eq. 13: of constant images the luminance term alone is left
    torch.testing.assert_close(ssim(a, b), torch.tensor([(2 * 0.24 + c1) / (0.16 + 0.36 + c1)]), rtol=1e-3, atol=0)


def test_ssim_does_not_depend_on_the_device(photographs, device):
    """TF32 in a GPU's convolutions would move it in the second decimal; what is left is the CPU's own rounding."""
    noisy = photographs + 0.02 * torch.randn(photographs.shape, generator=torch.Generator().manual_seed(0))
    exact = ssim(noisy.double(), photographs.double()).float()
    torch.testing.assert_close(ssim(noisy.to(device), photographs.to(device)).cpu(), exact, rtol=0, atol=3e-5)


def test_spectral_distance_sees_missing_and_invented_detail(photographs):
    noise = 0.1 * torch.randn(photographs.shape, generator=torch.Generator().manual_seed(0))
    scores = [spectral_distance(photographs + share * noise, photographs) for share in (0.0, 0.3, 1.0)]
    assert (scores[0] == 0).all() and (scores[0] < scores[1]).all() and (scores[1] < scores[2]).all()
    moved = photographs.roll(7, -1)  # it sees how much, not where
    assert (spectral_distance(moved, photographs) < 0.5 * scores[2]).all()


def test_radial_spectrum_has_its_peak_at_the_frequency_of_a_grating():
    x = torch.arange(64)
    for cycles in (8, 20):
        grating = 0.5 + 0.4 * torch.sin(2 * math.pi * cycles * x / 64).expand(1, 3, 48, 64)
        spectrum = radial_spectrum(grating)
        assert spectrum.shape == (1, 24)
        assert abs(int(spectrum.argmax()) - cycles * 48 / 64) <= 1
    flat = radial_spectrum(torch.full((1, 3, 32, 32), 0.7))
    torch.testing.assert_close(flat, torch.full((1, 16), -8.0), rtol=0, atol=1e-3)  # the floor


def test_nested_interval_covers_other_trainings_too():
    generator = torch.Generator().manual_seed(0)
    pictures, trainings = torch.randn(50, generator=generator), torch.randn(4, 1, generator=generator)
    same = pictures.expand(4, 50)  # trainings that agree: the interval over pictures
    inner, plain = nested_interval(same), bootstrap_interval(pictures)
    assert inner == pytest.approx(plain, abs=0.05)
    low, high = nested_interval(same + 2 * trainings)
    assert high - low > 3 * (plain[1] - plain[0])
    assert low < float((same + 2 * trainings).mean()) < high
    for wrong in (pictures, pictures[None], pictures[:, None]):
        with pytest.raises((ValueError, TypeCheckError)):
            nested_interval(wrong)


def test_sign_flip_counts_the_ways_that_are_as_far_out():
    for n in (1, 3, 5):  # all of one sign: only this way and its mirror image are as far out
        assert sign_flip_p(torch.rand(n, generator=torch.Generator().manual_seed(n)) + 0.1) == 2 / 2**n
    values = torch.tensor([0.3, -0.1, 0.25, 0.4])
    means = [
        sum(s * v for s, v in zip(way, values.tolist(), strict=True)) / 4
        for way in itertools.product((1, -1), repeat=4)
    ]
    assert sign_flip_p(values) == sum(abs(m) >= abs(means[0]) - 1e-9 for m in means) / 16
    assert sign_flip_p(-values) == sign_flip_p(values) == sign_flip_p(1000 * values.double())
    assert sign_flip_p(torch.zeros(4)) == sign_flip_p(torch.tensor([1.0, -1.0])) == 1
    for wrong in (torch.ones(0), torch.ones(17), torch.ones(2, 2)):
        with pytest.raises((ValueError, TypeCheckError)):
            sign_flip_p(wrong)


def test_sign_flip_keeps_its_promise():
    """Of two equals, at most 5 % of the tables give a p-value below 0.05."""
    tables = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    assert 0.02 < sum(sign_flip_p(row) < 0.05 for row in tables) / 400 < 0.075


def test_measure_takes_the_models_range(photographs):
    estimate, truth = 2 * photographs - 1, 2 * photographs.flip(0) - 1
    scores = measure(estimate, truth, ("psnr", "spectral"))
    expected = psnr(photographs, photographs.flip(0)).clamp(max=IDENTICAL)  # the middle one of three is itself
    assert scores["psnr"] == pytest.approx(expected.tolist(), rel=1e-4)
    assert list(scores) == ["psnr", "spectral"]
    with pytest.raises(ValueError, match="fid.*psnr, ssim, lpips, spectral"):
        measure(estimate, truth, ("fid",))


def test_an_unavailable_metric_is_reported_with_its_reason(monkeypatch):
    import lpips

    def no_network(*_, **__):
        raise URLError("no route to host")

    ev._lpips_network.cache_clear()
    monkeypatch.setattr(lpips, "LPIPS", no_network)
    usable, reasons = available(("psnr", "lpips", "ssim"))
    assert usable == ("psnr", "ssim")
    assert "AlexNet" in reasons["lpips"] and "no route to host" in reasons["lpips"]
    with pytest.raises(MetricUnavailable, match="download"):
        lpips_distance(torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32))
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)  # as if not installed
    usable, reasons = available(("psnr", "ssim"))
    assert usable == ("psnr",) and "torchmetrics" in reasons["ssim"]


def test_lpips_plumbing_with_random_weights(photographs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what torchvision says of lpips' call is kept from the reader
        first = lpips_distance(photographs, photographs.flip(3), random_weights=True)
    assert (first > 0).all()
    torch.testing.assert_close(first, lpips_distance(photographs, photographs.flip(3), random_weights=True))


# --- intervals --------------------------------------------------------------------------------------------------


def test_bootstrap_interval_is_that_of_the_mean():
    values = torch.randn(400, generator=torch.Generator().manual_seed(0)) * 3 + 10
    low, high = bootstrap_interval(values)
    half = 1.96 * float(values.std()) / 20  # the normal approximation, good at n = 400
    assert low < float(values.mean()) < high
    assert abs((high - low) / 2 / half - 1) < 0.1
    assert bootstrap_interval(values) == (low, high) != bootstrap_interval(values, seed=1)
    assert bootstrap_interval(torch.full((5,), 2.5)) == (2.5, 2.5)


def test_bootstrap_interval_covers_the_truth_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(200):
        low, high = bootstrap_interval(torch.randn(60, generator=generator), draws=500)
        covered += low <= 0 <= high
    assert 178 <= covered <= 199  # 95 % of 200, within three deviations


@pytest.mark.parametrize("values", [torch.zeros(1), torch.zeros(0), torch.zeros(3, 2)])
def test_bootstrap_needs_a_list_of_values(values):
    with pytest.raises((ValueError, TypeCheckError)):
        bootstrap_interval(values)


def test_summary_is_rounded():
    entry = summary([1.0, 2.0, 4.0])
    assert entry["mean"] == 2.3333 and entry["low"] <= 2.3333 <= entry["high"]


def test_differences_are_paired():
    """Scores that vary much between images, and little between models: only a paired interval is narrow."""
    base = [float(7 * i % 20) for i in range(20)]
    rows = {"a": {"psnr": base}, "b": {"psnr": [v + 0.5 for v in base]}, "c": {"psnr": base[::-1]}}
    difference = differences(rows)
    assert list(difference) == ["b - a", "c - a", "c - b"]
    assert difference["b - a"]["psnr"] == {"mean": 0.5, "low": 0.5, "high": 0.5}
    assert difference["c - a"]["psnr"]["high"] - difference["c - a"]["psnr"]["low"] > 5


# --- models x domains -------------------------------------------------------------------------------------------


def test_domain_pairs_are_held_out():
    pairs = domain_pairs("noise", "scenes", 3, seed=7_000)
    assert "noise" in pairs.name and "seed 7000" in pairs.name and len(pairs.contents) == 3
    training = scene_contents(3, seed=0)
    assert not any(torch.equal(a, b) for a in pairs.contents.images for b in training.images)
    assert "photos" in domain_pairs("new_content", "scenes", 3, seed=7_000).contents.name


def test_one_sample_and_the_mean(tiny_model, images):
    x, setting, model = images(1)[0], Setting(steps=3, samples=2), tiny_model()
    one, mean = sample_and_mean(model, x, setting, torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    draws = [restore(model, x, Setting(steps=3), generator) for _ in range(2)]
    assert torch.equal(one, draws[0])
    torch.testing.assert_close(mean, (draws[0] + draws[1]) / 2)


def test_evaluate(tiny_model, pairs, tmp_path):
    models = {
        "plain": tiny_model(scales=()),
        "guided": tiny_model(),
        "regression": tiny_model(kind="regression", scales=()),
    }
    domains = {"in": pairs, "noise": SyntheticPairs(scene_contents(8), "noise", seed=3)}
    lines = []
    results = evaluate(
        models, domains, SETTING, count=5, size=32, metrics=("psnr", "spectral"), batch=2, progress=lines.append
    )
    assert list(results["domains"]) == ["in", "noise"] and results["unavailable"] == {}
    entry = results["domains"]["in"]
    assert list(entry["scores"]) == ["blurry", "plain", "plain-mean", "guided", "guided-mean", "regression"]
    assert entry["count"] == 5 and entry["size"] == 32 and entry["data"] == pairs.name
    y0, x = pairs.crops(torch.arange(5), 32)
    expected = psnr(to_display(x), to_display(y0)).tolist()
    assert entry["per_image"]["blurry"]["psnr"] == pytest.approx(expected, abs=1e-3)
    assert entry["scores"]["blurry"]["psnr"]["mean"] == pytest.approx(sum(expected) / 5, abs=1e-3)
    gap = entry["difference"]["guided-mean - blurry"]["psnr"]["mean"]
    assert gap == pytest.approx(
        entry["scores"]["guided-mean"]["psnr"]["mean"] - entry["scores"]["blurry"]["psnr"]["mean"], abs=1e-3
    )
    assert len(lines) == 2 and lines[0].startswith("in: PSNR")
    again = evaluate(models, {"in": pairs}, SETTING, count=5, size=32, metrics=("psnr", "spectral"), batch=2)
    assert again["domains"]["in"] == entry  # the same samples each time
    write_results(tmp_path / "results.json", results)
    assert read_results(tmp_path / "results.json") == results

    lines = table(results).splitlines()
    assert len(lines) == 4 and {line.count("|") for line in lines} == {8} and lines[2].startswith("| in |")
    assert f"{entry['scores']['blurry']['psnr']['mean']:.2f} ±" in lines[2]


def test_every_picture_has_noise_of_its_own(tiny_model, pairs):
    """Also those of different batches."""

    class Same:
        name = "one picture, again and again"

        def crops(self, index, size):
            return tuple(image.expand(len(index), -1, -1, -1) for image in pairs.crops(torch.tensor([1]), size))

    results = evaluate({"plain": tiny_model(scales=())}, {"in": Same()}, SETTING, 4, 16, ("psnr",), batch=2)
    assert len(set(results["domains"]["in"]["per_image"]["plain"]["psnr"])) == 4


def test_evaluate_registers_the_estimate_with_the_truth(tiny_model, pairs):
    """What is compared is what `register` gives, of each row."""

    def drop_border(estimate, truth):
        return estimate[:, 4:-4, 4:-4], truth[:, 4:-4, 4:-4]

    model = {"plain": tiny_model(scales=())}
    results = evaluate(model, {"in": pairs}, SETTING, 3, 24, ("psnr",), register=drop_border)
    y0, x = (image[..., 4:-4, 4:-4] for image in pairs.crops(torch.arange(3), 24))
    expected = psnr(to_display(x), to_display(y0)).tolist()
    assert results["domains"]["in"]["per_image"]["blurry"]["psnr"] == pytest.approx(expected, abs=1e-3)


def test_evaluate_goes_on_without_an_unavailable_metric(tiny_model, pairs, monkeypatch):
    def unavailable(*_):
        raise MetricUnavailable("no weights here")

    monkeypatch.setitem(METRICS, "lpips", unavailable)
    results = evaluate({"plain": tiny_model(scales=())}, {"in": pairs}, SETTING, 2, 16, ("psnr", "lpips"))
    assert results["unavailable"] == {"lpips": "no weights here"}
    assert list(results["domains"]["in"]["scores"]["plain"]) == ["psnr"]


# --- the grid ---------------------------------------------------------------------------------------------------


def test_grid_search(tiny_model, pairs):
    model = tiny_model(scales=())
    lines = []
    cells = grid_search(model, pairs, 2, 16, steps=(1, 3), max_noise=(0.2, 0.9), progress=lines.append)
    assert [(c["steps"], c["max_noise"]) for c in cells] == [(1, 0.2), (1, 0.9), (3, 0.2), (3, 0.9)]
    assert [c["alpha_bar_T"] for c in cells] == pytest.approx(
        [float(linear(n, m).alpha_bar[-1]) for n in (1, 3) for m in (0.2, 0.9)]
    )
    assert all(c["seconds"] > 0 for c in cells) and len(lines) == 4
    y0, x = pairs.crops(torch.arange(2), 16)
    output = restore(model, x, Setting(steps=3, max_noise=0.2), torch.Generator().manual_seed(ev.VALIDATION_SEED))
    assert cells[2]["psnr"] == pytest.approx(sum(measure(output, y0, ("psnr",))["psnr"]) / 2, abs=1e-3)


def test_best_and_chosen_cell():
    cells = [
        {"psnr": 30.0, "spectral": 0.9},
        {"psnr": 29.7, "spectral": 0.3},
        {"psnr": 29.6, "spectral": 0.4},
        {"psnr": 25.0, "spectral": 0.1},
    ]
    assert best_cell(cells) is cells[0] and best_cell(cells, "spectral") is cells[3]
    assert choose_cell(cells) is cells[1] and choose_cell(cells, slack=0.1) is cells[0]
    assert choose_cell(cells, slack=9.0) is cells[3]


# --- results files ------------------------------------------------------------------------------------------------


def test_results_come_back_as_they_were(tmp_path):
    results = {
        "command": "x --set widths=[ 1, 2 ] \n[\n3 ]",
        "list": [1, 2.5, "a, [ b ]", None],
        "open": ["x [ a", "b"],
        "empty": [],
        "no": {},
        "nested": [[1, 2], [3, 4]],
        "of dicts": [{"a": 1}, {"b": [1, 2]}],
        "words": ["é", "{", "]", "["],
    }
    path = tmp_path / "new" / "folder" / "results.json"
    write_results(path, results)
    assert read_results(path) == results
    raw = json.loads(path.read_text())
    assert len(raw.pop("digest")) == 64 and raw == results
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]


def test_a_list_of_numbers_takes_one_line(tmp_path):
    path = tmp_path / "results.json"
    write_results(path, {"per_image": {"psnr": [20.5, 21.25, 30.0]}})
    assert '"psnr": [20.5, 21.25, 30.0]' in path.read_text()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused_and_the_old_file_stays(tmp_path, value):
    path = tmp_path / "results.json"
    write_results(path, {"psnr": 1.0})
    with pytest.raises(ValueError):
        write_results(path, {"psnr": value})
    assert read_results(path) == {"psnr": 1.0} and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "old, new", [("20.5", "20.6"), ('"plain"', '"guided"'), ('"digest"', '"digset"'), ("21.25, ", "")]
)
def test_a_number_changed_by_hand_is_found(tmp_path, old, new):
    path = tmp_path / "results.json"
    write_results(path, {"command": "python -m tinymsg evaluate", "arm": "plain", "psnr": [20.5, 21.25, 30.0]})
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(ValueError, match="by hand"):
        read_results(path)


SHIPPED = sorted((ROOT / "notebooks/results").glob("*.json"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.name)
def test_the_lessons_results_are_as_their_commands_wrote_them(path):
    assert read_results(path)["command"].startswith("python -m tinymsg ")


def test_provenance_says_how_it_came_about(monkeypatch):
    origin = provenance(["evaluate", "--count", "3"])
    assert origin["command"] == "python -m tinymsg evaluate --count 3" and origin["tinymsg"] == __version__
    assert {"torch", "numpy"} <= origin["packages"].keys() and origin["python"].startswith("3.")
    monkeypatch.setattr("sys.argv", ["tinymsg", "train"])
    assert provenance()["command"] == "python -m tinymsg train"
