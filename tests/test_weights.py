"""What the shipped weights can do: a floor for each, at home, and the file that its card speaks of."""

import pytest
import torch

from tinymsg.evaluate import TEST_SEED, domain_pairs, measure
from tinymsg.machine import sha256
from tinymsg.model import WEIGHTS, ModelConfig, model_card, pretrained, pretrained_names, weights_path
from tinymsg.sample import Setting, restore

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


def test_every_card_has_its_weights():
    assert set(pretrained_names()) == set(MEASURED) == {path.stem for path in WEIGHTS.glob("*.json")}
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"} and len({path.stem for path in files}) == len(
        files
    ) / 2


@pytest.mark.parametrize("name", pretrained_names())
def test_weights_are_small_and_the_file_of_their_card(name):
    card, model = model_card(name), pretrained(name)
    assert weights_path(name).stat().st_size <= 8_000_000
    assert card["sha256"] == sha256(weights_path(name)) and card["parameters"] == sum(
        weight.numel() for weight in model.parameters()
    )
    assert ModelConfig.from_dict(card["config"]["network"]) == model.config
    assert {"command", "data", "seed", "steps", "scores", "setting"} <= card.keys()


@pytest.mark.parametrize("name", MEASURED)
def test_scores_are_no_worse_than_they_were_and_better_than_the_blurry_pictures(name, crops, outputs):
    y0, x = crops(name)
    found, blurry = (
        {metric: sum(values) / COUNT for metric, values in measure(image, y0, ("psnr", "lpips")).items()}
        for image in (outputs(name), x)
    )
    assert found["psnr"] > MEASURED[name][0] - SLACK[0]
    assert found["psnr"] > blurry["psnr"] + (3 if name.startswith("scenes") else 0.5)
    assert found["lpips"] < MEASURED[name][1] + SLACK[1] and found["lpips"] < blurry["lpips"]
