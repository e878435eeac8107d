"""Weights on the Hugging Face hub: written by publish, fetched from a local server, checked against their card."""

import json
import shutil
import sys

import pytest
import torch
from bad_server import serve
from PIL import Image

import tinymsg
from tinymsg.cli import main
from tinymsg.evaluate import write_results
from tinymsg.machine import sha256
from tinymsg.model import _from_hub, load_model, model_card, pretrained, weights_path

huggingface_hub = pytest.importorskip("huggingface_hub")

SCORE = {"mean": 25.0, "low": 24.5, "high": 25.5}
SCORES = {"blurry": {"psnr": SCORE}, "guided": {"psnr": SCORE}, "other": {"psnr": SCORE}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, weights):
    """What publish --hub writes of tiny weights that say they were trained on GoPro."""
    place = tmp_path_factory.mktemp("hub")
    shutil.copy(weights, place / "weights.safetensors")
    config = {"network": load_model(weights).config.to_dict(), "training": {}}
    source = {"started_from": model_card("everyday-plain")["sha256"]}
    data = "2103 pairs of gopro train (blur)"
    run = {"command": "train", "steps": 4, "config": config, "data": data, "source": source}
    write_results(place / "run.json", run)
    results = {"weights": {"guided": {"sha256": sha256(weights)}}, "parameters": {"guided": 12345}, "unavailable": {}}
    domains = {"gopro_like": {"scores": SCORES}, "noise": {"scores": SCORES}}
    write_results(place / "scores.json", results | {"setting": {"steps": 3}, "domains": domains})
    command = ["publish", str(place), "--name", "tiny", "--results", str(place / "scores.json"), "--licence", "MIT"]
    assert main([*command, "--hub", str(place / "out")]) == 0
    return place / "out"


@pytest.fixture
def hub(folder, tmp_path, monkeypatch):
    """A server that has this folder as hf://me/tiny, for a machine that has fetched nothing yet."""
    _from_hub.cache_clear()
    with serve({path.name: path.read_bytes() for path in folder.iterdir()}) as server:
        ask(monkeypatch, f"{server.url}/hub")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", True)
        yield server


def ask(monkeypatch, address: str) -> None:
    """Make this the hub."""
    template = huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE
    path = template.removeprefix(huggingface_hub.constants.ENDPOINT)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", address + path)


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_a_folder_for_the_hub_is_weights_their_card_and_a_page(folder, weights):
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    assert same(pretrained(folder), load_model(weights))
    assert model_card(folder)["setting"] == {"steps": 3} and weights_path(folder).parent == folder
    page = huggingface_hub.ModelCard.load(folder / "README.md")
    assert (page.data.license, page.data.library_name, page.data.metrics) == ("mit", "tinymsg", ["psnr"])
    assert page.data.datasets == ["gopro"] and "deblurring" in page.data.tags
    assert "| noise | 25.00 ± 0.50 | 25.00 ± 0.50 |" in page.text and "12,345 parameters" in page.text
    earlier = sum(part["steps"] for part in model_card("everyday-plain")["history"])
    assert f"{earlier + 4:,} steps" in page.text  # of all the runs that these weights have gone through


def test_weights_of_the_hub_are_fetched_once(hub, weights, tmp_path):
    for name in ("hf://me/tiny", "hf://me/tiny@main"):
        assert same(tinymsg.pretrained(name), load_model(weights)) and model_card(name)["name"] == "tiny"
    assert len(hub.seen) == 2, "each file once"
    Image.new("RGB", (20, 20)).save(tmp_path / "in.png")
    command = ["deblur", str(tmp_path / "in.png"), "-o", str(tmp_path / "out.png"), "--device", "cpu"]
    assert main([*command, "--weights", "hf://me/tiny"]) == 0 and (tmp_path / "out.png").is_file()


def test_what_was_fetched_serves_without_a_network(hub, weights, monkeypatch):
    pretrained("hf://me/tiny")
    _from_hub.cache_clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert same(pretrained("hf://me/tiny"), load_model(weights))
    with pytest.raises(ValueError, match="hf://me/other.*online"):
        pretrained("hf://me/other")


def test_a_hub_that_does_not_answer(hub, capsys, free_port, monkeypatch):
    ask(monkeypatch, f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between its library's five tries, half a minute in all
    assert main(["deblur", "in.png", "-o", "out.png", "--weights", "hf://me/tiny", "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert "hf://me/tiny" in said and "online" in said and said.count("\n") == 1


@pytest.mark.parametrize("name", ["hf://me/tiny", "hf://", "hf://tiny/with/parts", "hf://../../x", "hf://me/tiny@v2"])
def test_what_the_hub_has_not(hub, name, monkeypatch):
    ask(monkeypatch, f"{hub.url}/no_repository")
    with pytest.raises(ValueError, match=f"^{name} cannot be fetched .*revision"):
        pretrained(name)


def test_a_damaged_file_of_the_cache_is_named_and_got_again(hub, weights):
    path = weights_path("hf://me/tiny").resolve()
    path.write_bytes(b"damaged")
    _from_hub.cache_clear()
    with pytest.raises(ValueError, match=path.name):
        pretrained("hf://me/tiny")
    path.unlink()
    assert same(pretrained("hf://me/tiny"), load_model(weights))


@pytest.mark.parametrize("card", [None, b"", b"[]", b"{}", b'{"sha256": 3}'], ids=str)
def test_weights_that_are_not_those_of_their_card(hub, folder, card, tmp_path):
    whole = hub.files["model.safetensors"]
    hub.files |= {"model.safetensors": whole[:-1] + b"\0"} if card is None else {"config.json": card}
    with pytest.raises(ValueError, match="card"):
        pretrained("hf://me/tiny")
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_bytes(hub.files[name])
    with pytest.raises(ValueError, match="card"):
        pretrained(tmp_path)


def test_a_folder_without_weights(tmp_path):
    with pytest.raises(ValueError, match="publish"):
        pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"sha256": "0"}))
    with pytest.raises(ValueError, match="publish"):
        pretrained(tmp_path)


def test_without_the_hubs_library_the_extra_is_named(monkeypatch, folder, tmp_path, capsys):
    _from_hub.cache_clear()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"tinymsg\[hub\]"):
        pretrained("hf://me/tiny")
    run = folder.parent
    command = [
        "publish",
        str(run),
        "--name",
        "tiny",
        "--results",
        str(run / "scores.json"),
        "--hub",
        str(tmp_path / "o"),
    ]
    assert main(command) == 2 and "tinymsg[hub]" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
