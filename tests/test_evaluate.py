import json
import math
import re
import sys
import warnings

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
    bootstrap_interval,
    differences,
    domain_pairs,
    evaluate,
    invented_edges,
    lpips_distance,
    measure,
    provenance,
    psnr,
    radial_spectrum,
    read_results,
    sample_and_mean,
    spectral_distance,
    ssim,
    student_interval,
    summary,
    table,
    variance_and_bias,
    write_results,
)
from tinymsg.machine import sha256
from tinymsg.sample import Setting, restore

SETTING = Setting("ddim", steps=2, max_noise=0.9, samples=2)


@pytest.fixture(scope="module")
def photographs() -> torch.Tensor:
    """(3, 3, 64, 64) pieces of real photographs, display values."""
    return torch.stack([photo(name)[:, 100:164, 120:184] for name in ("astronaut", "chelsea", "coffee")]).float() / 255


@pytest.fixture
def pairs() -> SyntheticPairs:
    return SyntheticPairs(scene_contents(8), "gopro_like", seed=3)


# --- metrics ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METRICS)
def test_metric_contract(name, photographs, device):
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


def test_measure_takes_the_models_range(photographs):
    estimate, truth = 2 * photographs - 1, 2 * photographs.flip(0) - 1
    scores = measure(estimate, truth, ("psnr", "spectral"))
    expected = psnr(photographs, photographs.flip(0)).clamp(max=IDENTICAL)  # the middle one of three is itself
    assert scores["psnr"] == pytest.approx(expected.tolist(), rel=1e-4)
    assert list(scores) == ["psnr", "spectral"]
    with pytest.raises(ValueError, match="fid.*psnr, ssim, lpips, spectral"):
        measure(estimate, truth, ("fid",))


@pytest.fixture
def textures() -> tuple[torch.Tensor, torch.Tensor]:
    """(a test chart of ever finer waves, the same out of focus), both (1, 3, 64, 64), display values."""
    y, x, c = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), torch.arange(1.0, 4.0), indexing="ij")
    truth = (0.5 + 0.5 * torch.sin(0.011 * (x**2 + c * y**2))).permute(2, 0, 1)[None]
    return truth, F.avg_pool2d(truth, 5, 1, 2, count_include_pad=False)


def test_lpips_has_its_reference_values(textures, device):
    """As computed in float64 from the float32 weights that the card names, by another implementation."""
    card = json.loads(ev.ALEXNET.with_suffix(".json").read_text())
    assert card["sha256"] == sha256(ev.ALEXNET)
    truth, blurred = (image.to(device) for image in textures)
    found = [float(lpips_distance(image, truth)) for image in (blurred, 1 - truth, truth)]
    assert found == pytest.approx([0.266057, 0.076513, 0], abs=1e-4)
    assert float(lpips_distance(truth, blurred)) == pytest.approx(found[0], abs=1e-6)


def test_lpips_says_nothing_and_moves_nothing(textures):
    """First asked for in the middle of a training: no warning, no random number drawn, usable with gradients later."""
    ev._lpips_network.cache_clear()
    before = torch.get_rng_state()
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("error")
        lpips_distance(*textures)
    assert torch.equal(torch.get_rng_state(), before)
    truth, estimate = textures[0], textures[1].requires_grad_()
    lpips_distance(estimate, truth).sum().backward()
    assert estimate.grad is not None and float(estimate.grad.abs().max()) > 0


@pytest.mark.parametrize(("metric", "missing"), [("ssim", "torchmetrics.functional.image"), ("lpips", "lpips")])
def test_an_unavailable_metric_is_reported_with_its_reason(metric, missing, monkeypatch):
    ev._lpips_network.cache_clear()
    monkeypatch.setitem(sys.modules, missing, None)  # as if not installed
    usable, reasons = available(("psnr", metric))
    assert usable == ("psnr",) and missing in reasons[metric]


def test_pictures_too_small_for_a_metric_are_scored_by_the_others():
    assert available(tuple(METRICS), 31)[0] == tuple(METRICS) and set(available(tuple(METRICS), 8)[1]) == {
        "ssim",
        "lpips",
    }
    usable, reasons = available(tuple(METRICS), 30)
    assert "lpips" not in usable and "31" in reasons["lpips"]
    with pytest.raises(MetricUnavailable, match="31"):
        measure(torch.zeros(1, 3, 30, 40), torch.zeros(1, 3, 30, 40), ("lpips",))


# --- intervals --------------------------------------------------------------------------------------------------


def test_bootstrap_interval_is_that_of_the_mean():
    values = torch.randn(400, generator=torch.Generator().manual_seed(0)) * 3 + 10
    low, high = bootstrap_interval(values)
    half = 1.96 * float(values.std()) / 20  # the normal approximation, good at n = 400
    assert low < float(values.mean()) < high
    assert abs((high - low) / 2 / half - 1) < 0.1
    assert bootstrap_interval(values) == (low, high) != bootstrap_interval(values, seed=1)
    assert bootstrap_interval(torch.full((5,), 2.5)) == (2.5, 2.5)


def test_crops_of_one_picture_count_together():
    """Ten crops of each of 30 pictures, that are all alike: no surer than one of each."""
    means = torch.randn(30, generator=torch.Generator().manual_seed(1))
    pictures = torch.arange(30).repeat(10) * 7
    low, high = bootstrap_interval(means.repeat(10), pictures=pictures)
    assert (low, high) == pytest.approx(bootstrap_interval(means))
    naive = bootstrap_interval(means.repeat(10))
    assert high - low > 2.5 * (naive[1] - naive[0])
    # Of pictures of unequal numbers of crops, the mean is still that of all crops
    low, high = bootstrap_interval(torch.tensor([0.0, 1, 1, 1]), pictures=torch.tensor([4, 9, 9, 9]))
    assert (low, high) == (0, 1)


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

        def pictures(self, index):
            return index  # as if they were different ones

        def crops(self, index, size):
            return tuple(image.expand(len(index), -1, -1, -1) for image in pairs.crops(torch.tensor([1]), size))

    results = evaluate({"plain": tiny_model(scales=())}, {"in": Same()}, SETTING, 4, 16, ("psnr",), batch=2)
    assert len(set(results["domains"]["in"]["per_image"]["plain"]["psnr"])) == 4


def test_a_single_picture_has_no_interval(tiny_model):
    alone = SyntheticPairs(scene_contents(1), "noise", seed=3)
    with pytest.raises(ValueError, match="a single picture"):
        evaluate({"plain": tiny_model(scales=())}, {"dark": alone}, SETTING, 4, 32, ("psnr",))


def test_evaluate_goes_on_without_an_unavailable_metric(tiny_model, pairs, monkeypatch):
    def unavailable(*_):
        raise MetricUnavailable("no weights here")

    monkeypatch.setitem(METRICS, "lpips", unavailable)
    results = evaluate({"plain": tiny_model(scales=())}, {"in": pairs}, SETTING, 2, 32, ("psnr", "lpips"))
    assert results["unavailable"] == {"lpips": "no weights here"}
    assert list(results["domains"]["in"]["scores"]["plain"]) == ["psnr"]


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
    assert re.match(r"python -m tinymsg(\.studies)? ", read_results(path)["command"])
    assert read_results(path.stem) == read_results(path)  # by its name, from the package


def test_provenance_says_how_it_came_about(monkeypatch):
    origin = provenance(["evaluate", "--count", "3"])
    assert origin["command"] == "python -m tinymsg evaluate --count 3" and origin["tinymsg"] == __version__
    assert {"torch", "numpy"} <= origin["packages"].keys() and origin["python"].startswith("3.")
    monkeypatch.setattr("sys.argv", ["tinymsg", "train"])
    assert provenance()["command"] == "python -m tinymsg train"


def test_student_interval_covers_the_truth_as_often_as_it_says():
    """Of three and of five training runs, where the bootstrap's would be too short."""
    generator = torch.Generator().manual_seed(0)
    for runs in (3, 5):
        means = torch.randn(1000, runs, generator=generator).tolist()
        intervals = [student_interval(values) for values in means]
        assert 929 <= sum(low <= 0 <= high for _, low, high in intervals) <= 971  # 95 %, within three deviations
    assert student_interval([1.0, 2.0, 3.0]) == pytest.approx((2, 2 - 2.4841, 2 + 2.4841), abs=1e-3)
    with pytest.raises(ValueError, match="2"):
        student_interval([1.0])


# --- what several samples and edges tell ------------------------------------------------------------------------


@pytest.mark.parametrize("k", [2, 4, 9])
def test_a_posterior_sampler_has_as_much_variance_as_bias(k):
    """A Gaussian posterior N(m, s^2): truth and samples are draws of it, whatever the number of samples."""
    generator = torch.Generator().manual_seed(k)
    draws = 0.3 + 0.2 * torch.randn(k + 1, 4, 3, 64, 64, generator=generator)
    variance, bias = variance_and_bias(draws[:-1], draws[-1])
    torch.testing.assert_close(variance, torch.full((4,), 0.04), rtol=0.05, atol=0)
    torch.testing.assert_close(bias, torch.full((4,), 0.04), rtol=0.1, atol=0)
    point = draws[:1].expand(k, -1, -1, -1, -1)
    variance, bias = variance_and_bias(point, draws[-1])
    assert (variance == 0).all()
    torch.testing.assert_close(bias, ((point[0] - draws[-1]) ** 2).flatten(1).mean(dim=1))
    with pytest.raises(ValueError, match="2"):
        variance_and_bias(draws[:1], draws[-1])


def test_invented_edges(photographs):
    assert (invented_edges(photographs, photographs) == 0).all()
    flat = torch.full((1, 3, 32, 32), 0.5)
    assert invented_edges(flat, photographs[:1, :, :32, :32]) == 0  # no edge, no invented one
    step, bar, shifted, far, faint = (flat.clone() for _ in range(5))
    step[..., 10:] = bar[..., 10:20] = 0.8
    shifted[..., 12:] = 0.8
    far[..., 20:] = 0.8
    faint[..., 10:] = 0.6
    assert invented_edges(step, shifted) == 0  # two pixels away is near enough
    assert invented_edges(step, far) == 1 == invented_edges(step, flat)
    assert invented_edges(step, faint) == 0 == invented_edges(faint, flat)
    assert invented_edges(bar, step) == 0.5  # one of its two edges is true
    assert invented_edges(step[:, :1, :1], flat[:, :1, :1]) == 1  # signals too
