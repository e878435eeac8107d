import ast
import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import tinymsg
from tinymsg import model as model_module
from tinymsg.data import get_domain, make_contents
from tinymsg.evaluate import write_results
from tinymsg.model import (
    COMPILE,
    KINDS,
    LOSSES,
    PRECISIONS,
    PREDICTIONS,
    WEIGHTS,
    Model,
    ModelConfig,
    Recipe,
    TrainConfig,
    build_model,
    count_parameters,
    load_model,
    model_card,
    plain_twin,
    pretrained,
    pretrained_names,
    save_model,
    weights_path,
)
from tinymsg.schedule import q_sample
from tinymsg.training.profiles import PROFILES, profile

LIBRARY = WEIGHTS.parent


# --- configurations ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"scales": (), "widths": (16, 24), "residual": False, "seed": 3}])
def test_recipes_come_back_from_json(changes):
    recipe = Recipe().change(**changes)
    saved = json.loads(json.dumps(recipe.to_dict()))
    assert Recipe.from_dict(saved) == recipe and hash(Recipe.from_dict(saved)) == hash(recipe)
    assert ModelConfig.from_dict(json.loads(json.dumps(recipe.network.to_dict()))) == recipe.network


def test_a_change_goes_to_the_part_that_has_it():
    recipe = Recipe().change(widths=(16, 16), lr=1.0)
    assert recipe.network == ModelConfig(widths=(16, 16)) and recipe.training == TrainConfig(lr=1.0)
    assert recipe.change(lr=TrainConfig.lr).change(widths=ModelConfig.widths) == Recipe()
    assert recipe.settings() == dataclasses.asdict(recipe.network) | dataclasses.asdict(recipe.training)
    parts = [{field.name for field in dataclasses.fields(part)} for part in (ModelConfig, TrainConfig)]
    assert not parts[0] & parts[1]
    with pytest.raises(ValueError, match="width.*widths"):
        Recipe().change(width=3)


def test_an_unknown_key_is_an_error_that_lists_the_known():
    with pytest.raises(ValueError, match="noise, width.*blocks.*widths"):
        ModelConfig.from_dict({"width": 3, "noise": 1, "blocks": 1})
    with pytest.raises(ValueError, match="learning_rate.*lr"):
        Recipe.from_dict({"network": {}, "training": {"learning_rate": 1}})


@pytest.mark.parametrize(
    "name, known",
    [
        ("kind", KINDS),
        ("predict", PREDICTIONS),
        ("precision", PRECISIONS),
        ("dims", (1, 2)),
        ("loss", LOSSES),
        ("compile", COMPILE),
    ],
)
def test_an_unknown_choice_lists_the_known(name, known):
    with pytest.raises(ValueError, match=f"{name} .*{'.*'.join(map(str, known))}"):
        Recipe().change(**{name: 3 if name == "dims" else "other"})
    for value in known:
        if (name, value) != ("kind", "regression"):
            assert Recipe().change(**{name: value}).settings()[name] == value


@pytest.mark.parametrize("name", ["steps", "batch", "accumulate", "crop", "blocks", "content_count"])
def test_counts_start_at_one(name):
    with pytest.raises(ValueError, match=f"{name} .* 1.* 0"):
        Recipe().change(**{name: 0})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"channels": 2}, "known: 1, 3"),
        ({"widths": ()}, "widths must be at least 1"),
        ({"widths": (0, 8)}, "widths must be at least 1"),
        ({"kind": "regression", "predict": "eps"}, "predict='x0'"),
        ({"kind": "regression", "predict": "v"}, "predict='x0'"),
        ({"crop": 60}, "multiple of 8.* 60"),
        ({"batch": 4, "accumulate": 3}, "4 .* 3 micro-batches"),
        ({"compile": "reduce-overhead", "accumulate": 2}, "accumulate must be 1"),
    ],
)
def test_choices_that_exclude_each_other(changes, message):
    with pytest.raises(ValueError, match=message):
        Recipe().change(**changes)


def test_every_field_is_read_somewhere():
    """An option that nothing reads is a lie."""
    read = set()
    for path in LIBRARY.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                owner = getattr(node.value, "attr", None) or getattr(node.value, "id", None)
                if owner in ("config", "c", "network", "training"):
                    read.add(node.attr)
    assert set(Recipe().settings()) - read == set()


# --- the model --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("predict", PREDICTIONS)
@pytest.mark.parametrize("residual", [False, True])
def test_predict_z0_inverts_target(tiny_recipe, images, predict, residual):
    model = Model(tiny_recipe(predict=predict, residual=residual).network)
    y0, x = (image.double() for image in images())
    eps = torch.randn(y0.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise_level = torch.tensor([0.2, 0.97], dtype=torch.float64)
    z0 = model.encode(y0, x)
    z_t = q_sample(z0, noise_level, eps)
    target = model.target(z0, eps, noise_level)
    torch.testing.assert_close(model.predict_z0(target, z_t, noise_level), z0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model.decode(z0, x), y0, rtol=1e-9, atol=1e-9)
    closed_form = {"eps": eps[1], "x0": z0[1], "v": 0.97 * eps[1] - (1 - 0.97**2) ** 0.5 * z0[1]}
    torch.testing.assert_close(target[1], closed_form[predict])


def test_decode_clips_to_the_range_of_images(tiny_recipe, images):
    y0, x = images()
    for residual in (True, False):
        model = Model(tiny_recipe(residual=residual).network)
        image = model.decode(100 * torch.ones_like(x), x)
        assert (image == 1).all() and (model.decode(-100 * torch.ones_like(x), x) == -1).all()
    assert torch.equal(Model(tiny_recipe(residual=True, residual_scale=3.0).network).encode(y0, x), 3 * (y0 - x))


@pytest.mark.parametrize("predict", PREDICTIONS)
@pytest.mark.parametrize("residual", [False, True])
def test_denoiser_gives_the_clipped_image(tiny_model, images, predict, residual):
    """z0_hat stands for what the network's output says, with the image in [-1, 1]."""
    model = tiny_model(predict=predict, residual=residual)
    z_t, x = images()
    level = torch.tensor([0.5, 0.9])
    with torch.no_grad():
        z0_hat = model.denoiser(x)(z_t, level)
        free = model.predict_z0(model(z_t, x, level)[0], z_t, level)
    picture = model.decode(z0_hat, x)
    torch.testing.assert_close(picture, model.decode(free, x), rtol=0, atol=1e-5)
    torch.testing.assert_close(model.encode(picture, x), z0_hat, rtol=0, atol=1e-5)
    inside = picture.abs() < 1
    assert inside.any() and not inside.all()
    assert torch.equal(z0_hat[inside], free[inside])  # to the bit: nothing goes there and back
    if predict == "x0":
        with torch.no_grad():
            assert torch.equal(z0_hat[inside], model(z_t, x, level)[0][inside])


def test_regression_ignores_noise_and_level(tiny_model, images):
    model = tiny_model(kind="regression", scales=())
    z_t, x = images()
    denoise = model.denoiser(x)
    with torch.no_grad():
        first, second = denoise(z_t, torch.tensor([0.5, 0.6])), denoise(-z_t, torch.tensor([0.7, 0.8]))
    assert torch.equal(first, second) and first.std() > 0.01


def test_initial_weights_come_from_the_seed_alone(tiny_recipe):
    config = tiny_recipe().network
    torch.manual_seed(1)
    first = build_model(config).state_dict()
    state = torch.random.get_rng_state()
    second = build_model(config).state_dict()
    assert torch.equal(torch.random.get_rng_state(), state)  # the caller's generator is left alone
    other = build_model(config, seed=1).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["unet.conv_in.weight"], other["unet.conv_in.weight"])


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_crops_of_scenes_hold_no_mirrored_pixels(name):
    training = profile(name).training
    whole = make_contents(training.content, 1, 0).images[0].shape[-1]
    assert training.crop + 2 * get_domain(training.domain).margin(training.crop) < whole


@pytest.mark.parametrize("name", PROFILES)
def test_the_plain_twin_has_as_many_parameters(name):
    config = profile(name).network
    twin = plain_twin(config)
    with torch.device("meta"):
        guided, plain = count_parameters(Model(config)), count_parameters(Model(twin))
    assert guided <= plain <= 1.05 * guided
    assert twin.scales == () and dataclasses.replace(twin, scales=config.scales, widths=config.widths) == config
    regression = plain_twin(config, "regression")
    assert (regression.kind, regression.predict, regression.widths) == ("regression", "x0", twin.widths)


# --- weights on disk --------------------------------------------------------------------------------------------


def test_weights_round_trip_within_float16(tiny_model, images, tmp_path):
    model = tiny_model(predict="v", scales=(1, 3), how="both")
    path = tmp_path / "weights.safetensors"
    save_model(model, path)
    assert [p.name for p in tmp_path.iterdir()] == ["weights.safetensors"]
    loaded = load_model(path)
    assert loaded.config == model.config and not loaded.training
    for name, value in model.state_dict().items():
        saved = loaded.state_dict()[name]
        assert saved.dtype == torch.float32 and torch.equal(saved, value.half().float()), name
    z_t, x = images()
    level = torch.tensor([0.5, 0.9])
    with torch.no_grad():
        torch.testing.assert_close(loaded(z_t, x, level)[0], model(z_t, x, level)[0], rtol=0, atol=0.05)
    assert load_file(path)["unet.conv_in.weight"].dtype == torch.float16


def test_saving_over_older_weights(tiny_model, tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_text("old")
    save_model(tiny_model(), path)
    assert load_model(path).config.widths == (16, 16, 16, 16)


def test_files_that_are_not_ours(tiny_model, tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights at"):
        load_model(tmp_path / "missing.safetensors")
    path = tmp_path / "weights.safetensors"
    save_model(tiny_model(), path)
    whole = path.read_bytes()
    for damaged in (b"", b"PNG", whole[:5], whole[: len(whole) // 2], whole[:-1], b"\xff" * 100):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="safetensors"):
            load_model(path)
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="configuration"):
        load_model(path)
    for text in ("{", "[1]", '{"width": 3}'):
        save_file({"weight": torch.zeros(3)}, path, metadata={"config": text})
        with pytest.raises(ValueError):
            load_model(path)
    config = json.dumps(tiny_model().config.to_dict())
    save_file({"weight": torch.zeros(3)}, path, metadata={"config": config})  # the weights of another network
    with pytest.raises(ValueError, match="does not fit"):
        load_model(path)


def test_unknown_names_list_the_shipped():
    for function in (pretrained, model_card):
        with pytest.raises(ValueError, match="nothing.*scenes-guided"):
            function("nothing")
        with pytest.raises(ValueError, match="unknown weights"):
            function("../weights/" + "".join(pretrained_names()[:1]))


def test_names_are_those_of_the_folder(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(model_module, "WEIGHTS", tmp_path)
    assert pretrained_names() == []
    save_model(tiny_model(), tmp_path / "b.safetensors")
    save_model(tiny_model(), tmp_path / "a.safetensors")
    write_results(tmp_path / "a.json", {"steps": 7})
    assert pretrained_names() == ["a", "b"] and model_card("a")["steps"] == 7
    assert weights_path("a") == tmp_path / "a.safetensors"
    assert pretrained("b").config == tiny_model().config


def test_the_package_offers_pretrained_alone():
    assert tinymsg.pretrained is pretrained
    with pytest.raises(AttributeError, match="restore"):
        tinymsg.restore  # noqa: B018


def test_a_file_is_weights_without_a_card(weights):
    for name in (weights, str(weights)):
        assert weights_path(name) == weights and model_card(name) == {}
        assert pretrained(name).config == load_model(weights).config
