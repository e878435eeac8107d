import ast
import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tinymsg import model as model_module
from tinymsg.model import KINDS, LOSSES, PRECISIONS, PREDICTIONS, WEIGHTS, WITHHELD, Config, Model, build_model, count_parameters, load_model, model_card, plain_twin, pretrained, pretrained_names, save_model
from tinymsg.training.profiles import PROFILES
from tinymsg.machine import sha256
from tinymsg.evaluate import write_results
from tinymsg.sample import restore
from tinymsg.schedule import q_sample

LIBRARY = WEIGHTS.parent


# --- Config -----------------------------------------------------------------------------------------------------


def test_config_round_trip():
    for config in (
        Config(),
        Config(scales=(), widths=(16, 24), residual=False, seed=3),
        *(Config(**p) for p in PROFILES.values()),
    ):
        assert Config.from_dict(config.to_dict()) == config
        assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
        assert hash(config) == hash(Config.from_dict(config.to_dict()))


def test_an_unknown_key_is_an_error_that_lists_the_known():
    with pytest.raises(ValueError, match="unknown configuration keys: learning_rate, width; known: .*lr.*widths"):
        Config.from_dict({"width": 3, "learning_rate": 1, "lr": 1e-3})
    with pytest.raises(TypeError):
        Config(width=3)


@pytest.mark.parametrize(
    "name, known",
    [
        ("kind", KINDS),
        ("predict", PREDICTIONS),
        ("loss", LOSSES),
        ("precision", PRECISIONS),
        ("dims", (1, 2)),
        ("noise_schedule", ("linear", "cosine")),
    ],
)
def test_an_unknown_choice_lists_the_known(name, known):
    with pytest.raises(ValueError, match=f"unknown {name} .*; known: {', '.join(map(str, known))}"):
        dataclasses.replace(Config(), **{name: "other"})
    for value in known:
        if (name, value) != ("kind", "regression"):
            assert getattr(dataclasses.replace(Config(), **{name: value}), name) == value


@pytest.mark.parametrize("name", ["steps", "batch", "crop", "blocks", "channels", "content_count"])
def test_counts_start_at_one(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        Config(**{name: 0})


def test_choices_that_exclude_each_other():
    for predict in set(PREDICTIONS) - {"x0"}:
        with pytest.raises(ValueError, match="set predict='x0'"):
            Config(kind="regression", predict=predict)
    with pytest.raises(ValueError, match="multiple of 8, got 60"):
        Config(crop=60)


def test_every_field_is_read_somewhere():
    """An option that nothing reads is a lie."""
    read = set()
    for path in LIBRARY.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                owner = node.value
                if getattr(owner, "attr", None) == "config" or getattr(owner, "id", None) in ("config", "c"):
                    read.add(node.attr)
    assert {field.name for field in dataclasses.fields(Config)} - read == set()


# --- the model --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("predict", PREDICTIONS)
@pytest.mark.parametrize("residual", [False, True])
def test_predict_z0_inverts_target(tiny_config, images, predict, residual):
    model = Model(tiny_config(predict=predict, residual=residual))
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


def test_decode_clips_to_the_range_of_images(tiny_config, images):
    y0, x = images()
    for residual in (True, False):
        model = Model(tiny_config(residual=residual))
        image = model.decode(100 * torch.ones_like(x), x)
        assert (image == 1).all() and (model.decode(-100 * torch.ones_like(x), x) == -1).all()
    assert torch.equal(Model(tiny_config(residual=True, residual_scale=3.0)).encode(y0, x), 3 * (y0 - x))


@pytest.mark.parametrize("predict", PREDICTIONS)
@pytest.mark.parametrize("residual", [False, True])
def test_denoiser_agrees_with_the_clipped_image(tiny_model, images, predict, residual):
    """eps_hat and the image it implies solve z_t = level z0 + sqrt(1 - level^2) eps, with the image in [-1, 1]."""
    model = tiny_model(predict=predict, residual=residual)
    z_t, x = images()
    level = torch.tensor([0.5, 0.9])
    with torch.no_grad():
        eps_hat = model.denoiser(x)(z_t, level)
        output, _ = model(z_t, x, level)
    column = level[:, None, None, None]
    z0_hat = (z_t - torch.sqrt(1 - column**2) * eps_hat) / column
    expected = model.decode(model.predict_z0(output, z_t, level), x)
    torch.testing.assert_close(model.decode(z0_hat, x), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(model.encode(expected, x), z0_hat, rtol=0, atol=1e-3)


def test_regression_ignores_noise_and_level(tiny_model, images):
    model = tiny_model(kind="regression", scales=())
    z_t, x = images()
    eps_fn = model.denoiser(x)
    levels = torch.tensor([0.5, 0.6]), torch.tensor([0.7, 0.8])
    with torch.no_grad():
        pictures = []
        for z, level in ((z_t, levels[0]), (-z_t, levels[1])):
            column = level[:, None, None, None]
            pictures.append((z - torch.sqrt(1 - column**2) * eps_fn(z, level)) / column)
    torch.testing.assert_close(pictures[0], pictures[1], rtol=0, atol=1e-4)


def test_initial_weights_come_from_the_seed_alone(tiny_config):
    torch.manual_seed(1)
    first = build_model(tiny_config()).state_dict()
    state = torch.random.get_rng_state()
    second = build_model(tiny_config()).state_dict()
    assert torch.equal(torch.random.get_rng_state(), state)  # the caller's generator is left alone
    other = build_model(tiny_config(seed=1)).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["unet.conv_in.weight"], other["unet.conv_in.weight"])


@pytest.mark.parametrize("profile", PROFILES)
def test_the_plain_twin_has_as_many_parameters(profile):
    config = Config(**PROFILES[profile])
    twin = plain_twin(config)
    with torch.device("meta"):
        guided, plain = count_parameters(Model(config)), count_parameters(Model(twin))
    assert guided <= plain <= 1.05 * guided
    assert twin.scales == () and dataclasses.replace(twin, scales=config.scales, widths=config.widths) == config
    assert plain_twin(dataclasses.replace(config, predict="x0"), "regression").kind == "regression"


def test_training_schedule_is_the_configured_one(tiny_config):
    schedule = Model(tiny_config(noise_schedule="cosine", noise_steps=30, noise_max=0.5)).training_schedule()
    assert schedule.T == 30 and schedule.beta.max() <= 0.5 + 1e-12
    default = Model(tiny_config()).training_schedule()
    assert default.T == 2000 and abs(default.alpha_bar[-1] / 4.5e-5 - 1) < 0.15  # Config's comment says 4e-5


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
        with pytest.raises(ValueError, match="not a readable safetensors file"):
            load_model(path)
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="no tinymsg configuration"):
        load_model(path)
    for text in ("{", "[1]", '{"width": 3}'):
        save_file({"weight": torch.zeros(3)}, path, metadata={"config": text})
        with pytest.raises(ValueError):
            load_model(path)
    config = json.dumps(tiny_model().config.to_dict())
    save_file({"weight": torch.zeros(3)}, path, metadata={"config": config})  # the weights of another network
    with pytest.raises(ValueError, match="does not fit|other|missing"):
        load_model(path)


def test_unknown_names_list_the_shipped():
    for function in (pretrained, model_card):
        with pytest.raises(ValueError, match="unknown weights 'nothing'; shipped:"):
            function("nothing")
        with pytest.raises(ValueError, match="unknown weights"):
            function("../weights/" + "".join(pretrained_names()[:1]))


def test_names_are_those_of_the_folder(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(model_module, "WEIGHTS", tmp_path)
    assert pretrained_names() == []
    save_model(tiny_model(), tmp_path / "b.safetensors")
    save_model(tiny_model(), tmp_path / "a.safetensors")
    write_results(tmp_path / "a.json", {"steps": 7})
    assert pretrained_names() == ["a", "b"] and model_card("a") == {"steps": 7}
    assert pretrained("b").config == tiny_model().config


@pytest.mark.parametrize("name", pretrained_names())
def test_shipped_weights(name):
    """Each loads, runs, is small, and is the file that its card speaks of."""
    path = WEIGHTS / f"{name}.safetensors"
    assert path.stat().st_size <= 8_000_000
    card = model_card(name)
    assert card["sha256"] == sha256(path)
    assert {"command", "data", "seed", "steps", "scores"} <= card.keys()
    model = pretrained(name)
    c = model.config
    x = torch.rand(1, c.channels, 1 if c.dims == 1 else 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    output = restore(model, x, steps=1, generator=torch.Generator().manual_seed(0))
    assert output.shape == x.shape and torch.isfinite(output).all() and not torch.equal(output, x)


def test_every_card_has_its_weights():
    cards = {path.stem for path in WEIGHTS.glob("*.json")}
    assert cards <= set(pretrained_names()) and {p.suffix for p in WEIGHTS.glob("*")} <= {".json", ".safetensors"}


# --- the blurry image withheld from the denoiser ----------------------------------------------------------------


@pytest.mark.parametrize("withhold_as", WITHHELD)
def test_concealed_images_reach_the_guidance_alone(tiny_model, images, withhold_as):
    model = tiny_model(withhold=0.5, withhold_as=withhold_as)
    y_t, x = images()
    level = torch.tensor([0.3, 0.8])
    seen = model.conceal(x, torch.tensor([True, False]))
    assert torch.equal(seen[1], x[1]) and not torch.equal(seen[0], x[0])
    flat = torch.full_like(x, 0.4)
    wanted = torch.zeros_like(flat) if withhold_as == "zeros" else flat  # a flat image is its own coarse version
    torch.testing.assert_close(model.conceal(flat, torch.tensor([True, True])), wanted)
    output, predictions = model(y_t, x, level, torch.tensor([True, False]))
    features, of_x = model.guidance(x)
    torch.testing.assert_close(output, model.unet(y_t, seen, level, features))
    for a, b in zip(predictions, of_x, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(model(y_t, x, level)[0][1], output[1])


def test_always_withheld_means_at_test_too(tiny_model, images):
    _, x = images()
    z_t, level = torch.zeros_like(x), torch.tensor([0.3, 0.8])
    model = tiny_model(withhold=1.0, residual=False)
    with torch.no_grad():
        for projection in model.guidance.to_encoder:  # without guidance nothing of x is left
            projection.weight.zero_()
        first, second = (model.denoiser(image)(z_t, level) for image in (x, x.flip(-1)))
    assert torch.equal(first, second)
    often = tiny_model(withhold=0.9, residual=False)
    with torch.no_grad():
        assert not torch.equal(often.denoiser(x)(z_t, level), often.denoiser(x.flip(-1))(z_t, level))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"withhold": 1.5}, "share of the training pairs, 0 to 1"),
        ({"withhold_as": "noise"}, "unknown withhold_as 'noise'; known: zeros, coarse"),
        ({"head_start": 5, "scales": ()}, "needs scales and a target"),
        ({"head_start": 5, "target": "none"}, "needs scales and a target"),
    ],
)
def test_withholding_and_head_start_say_what_is_allowed(tiny_config, changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**changes)
