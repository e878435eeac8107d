"""What the shipped weights can do: a floor for each, at home, and the file that its card speaks of."""

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file

from tinymsg import evaluate as ev
from tinymsg.evaluate import TEST_SEED, domain_pairs, measure, to_display
from tinymsg.machine import sha256
from tinymsg.model import WEIGHTS, model_card, pretrained, pretrained_names, weights_path
from tinymsg.sample import Setting, restore

FEATURES = ROOT.parent / "shared" / "data" / "metrics" / "lpips_alexnet_features.safetensors"
COUNT, SIZE = 6, 64
# PSNR and LPIPS of the crops below, measured when this was written; another machine's rounding moves them by less
# than the slack
MEASURED = {
    "photos-guided": (32.10, 0.060),
    "photos-plain": (31.87, 0.054),
    "photos-regression": (32.11, 0.056),
    "scenes-guided": (28.91, 0.027),
    "scenes-plain": (28.68, 0.030),
    "scenes-regression": (28.68, 0.041),
}
SLACK = (0.3, 0.015)


@pytest.fixture(scope="module")
def crops():
    """crops(name) -> (y0, x) of the kind that these weights learnt from, never seen in training, in its domain."""
    made = {}

    def get(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        content = name.split("-")[0]
        if content not in made:
            made[content] = domain_pairs("gopro_like", content, COUNT, TEST_SEED).crops(torch.arange(COUNT), SIZE)
        return made[content]

    return get


@pytest.fixture(scope="module")
def outputs(crops):
    """outputs(name) -> one sample of each crop, by the setting of the card."""
    made = {}

    def get(name: str) -> torch.Tensor:
        if name not in made:
            setting = Setting(**(model_card(name)["setting"] | {"samples": 1}))
            generator = torch.Generator().manual_seed(TEST_SEED)
            made[name] = restore(pretrained(name), crops(name)[1], setting, generator)
        return made[name]

    return get


@pytest.fixture(scope="module")
def lpips_network() -> torch.nn.Module:
    """LPIPS with its published weights: AlexNet's from a file beside the repository, nothing downloaded."""
    if not FEATURES.is_file():
        pytest.skip(f"AlexNet's features are not here: ../{FEATURES.relative_to(ROOT.parent)} is missing")
    network = ev._lpips_network.__wrapped__("cpu", random_weights=True)
    features = load_file(FEATURES)
    with torch.no_grad():
        for slot, place in enumerate((0, 3, 6, 8, 10), start=1):
            layer = getattr(network.net, f"slice{slot}").get_submodule(str(place))
            layer.weight.copy_(features[f"features.{place}.weight"].float())
            layer.bias.copy_(features[f"features.{place}.bias"].float())
    return network


def test_every_card_has_its_weights():
    assert set(pretrained_names()) == set(MEASURED) == {path.stem for path in WEIGHTS.glob("*.json")}
    assert {path.suffix for path in WEIGHTS.glob("*")} <= {".json", ".safetensors"}


@pytest.mark.parametrize("name", pretrained_names())
def test_weights_are_small_and_the_file_of_their_card(name):
    card, model = model_card(name), pretrained(name)
    assert weights_path(name).stat().st_size <= 8_000_000
    assert card["sha256"] == sha256(weights_path(name)) and card["parameters"] == sum(
        weight.numel() for weight in model.parameters()
    )
    assert card["config"]["network"] == {
        key: list(value) if isinstance(value, tuple) else value for key, value in model.config.to_dict().items()
    }
    assert {"command", "data", "seed", "steps", "scores", "setting"} <= card.keys()


@pytest.mark.parametrize("name", MEASURED)
def test_psnr_is_not_lower_than_it_was_and_better_than_the_blurry_picture(name, crops, outputs):
    y0, x = crops(name)
    found, blurry = (sum(measure(image, y0, ("psnr",))["psnr"]) / COUNT for image in (outputs(name), x))
    assert found > MEASURED[name][0] - SLACK[0]
    assert found > blurry + (3 if name.startswith("scenes") else 0.5)


@pytest.mark.parametrize("name", MEASURED)
def test_lpips_is_not_higher_than_it_was_and_better_than_the_blurry_picture(name, crops, outputs, lpips_network):
    y0, x = crops(name)
    with torch.no_grad():
        found, blurry = (float(lpips_network(to_display(image) * 2 - 1, y0).mean()) for image in (outputs(name), x))
    assert found < MEASURED[name][1] + SLACK[1]
    assert found < blurry
