import itertools

import pytest
import torch
import torch.nn.functional as F

from tinymsg.guidance import (
    HOW,
    INJECT,
    LUMA,
    TARGETS,
    MultiscaleGuidance,
    NoGuidance,
    StructureNet,
    downsample,
    structure_targets,
    to_gray,
)
from tinymsg.train import loss_terms

# Without a target nothing is left for the nets to learn from where the denoiser's gradient is cut
VARIANTS = [v for v in itertools.product(TARGETS, INJECT, HOW, (False, True)) if not (v[0] == "none" and v[3])]
WIDTHS = (16, 16, 24, 32)
LEVEL = torch.tensor([0.3, 0.8])


# --- pictures at several scales ---------------------------------------------------------------------------------


def test_gray_is_luma(images):
    x, _ = images()
    assert abs(sum(LUMA) - 1) < 1e-12
    expected = torch.einsum("c,bchw->bhw", torch.tensor(LUMA), x)[:, None]
    torch.testing.assert_close(to_gray(x), expected)
    assert torch.equal(to_gray(x[:, :1]), x[:, :1])


@pytest.mark.parametrize("k", [1, 2, 3])
def test_downsampling_is_antialiased_and_keeps_the_mean(k, device):
    flat = torch.full((1, 1, 32, 48), 0.3, device=device)
    small = downsample(flat, k)
    assert small.shape == (1, 1, 32 >> k, 48 >> k)
    torch.testing.assert_close(small, torch.full_like(small, 0.3))
    noise = torch.randn(64, 1, 32, 48, generator=torch.Generator().manual_seed(0)).to(device)
    # A filter as wide as the new pixels are far apart
    triangle = 1 - (torch.arange(2 << k) + 0.5 - (1 << k)).abs() / (1 << k)
    variance = ((triangle / triangle.sum()) ** 2).sum().item() ** 2
    inside = downsample(noise, k)[..., 1:-1, 1:-1]
    assert abs(inside.var().item() / variance - 1) < 0.1  # without it: 1/4 at any k, aliased from fine detail
    ramp = torch.arange(48.0, device=device).expand(1, 1, 32, 48)
    centre = (torch.arange(48 >> k, device=device) + 0.5) * 2**k - 0.5
    torch.testing.assert_close(downsample(ramp, k)[0, 0, 0, 1:-1], centre[1:-1], rtol=0, atol=1e-3)  # and no shift


def test_downsampling_signals_and_bf16():
    assert downsample(torch.zeros(2, 1, 1, 32), 3).shape == (2, 1, 1, 4)
    assert downsample(torch.zeros(2, 3, 16, 16, dtype=torch.bfloat16), 1).dtype == torch.float32


@pytest.mark.parametrize("target, channels", [("gray", 1), ("rgb", 3)])
def test_structure_targets(images, target, channels):
    y0, _ = images()
    targets = structure_targets(y0, (1, 3), target)
    assert [tuple(t.shape) for t in targets] == [(2, channels, 8, 8), (2, channels, 2, 2)]
    picture = y0 if target == "rgb" else to_gray(y0)
    torch.testing.assert_close(targets[1], downsample(picture, 3))


def test_structure_net_starts_by_predicting_its_input():
    gray = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    hidden, prediction = StructureNet(1, 8, 2, 2)(gray)
    assert hidden.shape == (2, 8, 8, 8) and torch.equal(prediction, gray)
    hidden, prediction = StructureNet(3, 8, 2, 2)(gray)
    assert torch.equal(prediction, gray.expand(2, 3, 8, 8))
    assert StructureNet(0, 8, 2, 2)(gray)[1] is None


# --- the contract, over all variants ----------------------------------------------------------------------------


@pytest.mark.parametrize("target, inject, how, stop", VARIANTS)
@pytest.mark.parametrize("scales, dims, fold", [((1, 2, 3), 2, 1), ((3, 1), 2, 1), ((2,), 1, 1), ((4, 2), 2, 4)])
def test_shapes(images, target, inject, how, stop, scales, dims, fold):
    h, w = (16, 24) if dims == 2 else (1, 32)
    x, _ = images(2, 3, h, w)
    guidance = MultiscaleGuidance(WIDTHS, scales, target, inject, how, stop, width=8, blocks=1, dims=dims, fold=fold)
    (add, concat), predictions = guidance(x)
    small = {k: (max(h >> k, 1), w >> k) for k in scales}
    channels = 3 if target == "rgb" else 1
    if target == "none":
        assert predictions == ()
    else:
        assert [tuple(p.shape) for p in predictions] == [(2, channels, *small[k]) for k in scales]
    if how == "concat":
        assert add == {}
    else:
        first = {1: 0, 4: 2}[fold]  # the scale of the UNet's first level
        assert {k: tuple(a.shape) for k, a in add.items()} == {k: (2, WIDTHS[k - first], *small[k]) for k in scales}
    if how == "add":
        assert concat is None and guidance.concat_channels == 0
    else:
        assert tuple(concat.shape) == (2, guidance.concat_channels, h, w)
        assert guidance.concat_channels == len(scales) * (channels if inject != "features" else 4)
    # No weights that nothing trains: the head is there if it is regressed or injected
    assert all((net.head is None) == (target == "none" and inject == "features") for net in guidance.nets)


@pytest.mark.parametrize("target, inject, how, stop", VARIANTS)
def test_gradients_of_the_two_losses(tiny_model, images, target, inject, how, stop):
    """The denoising loss reaches the structure nets unless it is cut; the guidance loss always does, and only them."""
    model = tiny_model(scales=(1, 2), target=target, inject=inject, how=how, stop_gradient=stop)
    y0, x = images()
    denoise, structure = loss_terms(model, y0, x, LEVEL, torch.randn_like(y0))
    nets = list(model.guidance.nets.parameters())
    projections = [*model.guidance.to_encoder.parameters(), *model.guidance.to_input.parameters()]

    def reached(loss, parameters):
        if not parameters or not loss.requires_grad:
            return [False] * len(parameters)
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        return [g is not None and bool(g.abs().sum() > 0) for g in gradients]

    assert all(reached(denoise, list(model.unet.parameters())))
    assert all(reached(denoise, projections)) if projections else inject != "features"
    head = {id(p) for net in model.guidance.nets if net.head is not None for p in net.head.parameters()}
    wanted = [not stop and (inject == "structure" or id(p) not in head) for p in nets]
    assert reached(denoise, nets) == wanted
    assert reached(structure, nets) == [target != "none"] * len(nets)
    assert not any(reached(structure, projections + list(model.unet.parameters())))


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("inject", INJECT)
def test_zeroed_projections_give_the_plain_network(tiny_model, images, how, inject):
    model = tiny_model(how=how, inject=inject)
    y_t, x = images()
    guided, _ = model(y_t, x, LEVEL)
    channels = model.guidance.concat_channels
    with torch.no_grad():
        for projection in [*model.guidance.to_encoder, *model.guidance.to_input]:
            projection.weight.zero_()
            projection.bias.zero_()
        if channels:  # what is concatenated then meets no weights
            model.unet.conv_in.weight[:, -channels:] = 0
    silent, _ = model(y_t, x, LEVEL)
    if channels:
        plain_in = torch.nn.Conv2d(6, 16, 3, padding=1)
        plain_in.weight.data = model.unet.conv_in.weight.data[:, :-channels].clone()
        plain_in.bias.data = model.unet.conv_in.bias.data.clone()
        model.unet.conv_in, model.unet.concat = plain_in, 0
    torch.testing.assert_close(silent, model.unet(y_t, x, LEVEL), rtol=1e-4, atol=1e-5)
    assert (guided - silent).abs().mean() > 1e-3


def test_features_see_the_gray_picture_alone(tiny_model, images):
    """Two pictures of equal luma, unequal colour: the same guidance (Ren 2023: colour is left out)."""
    guidance = tiny_model().guidance
    x, _ = images()
    x = 0.3 * x
    other = x + torch.tensor([LUMA[1], -LUMA[0], 0.0])[:, None, None]
    (add, _), predictions = guidance(x)
    (add_2, _), predictions_2 = guidance(other)
    for a, b in zip([*add.values(), *predictions], [*add_2.values(), *predictions_2], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_injected_structure_is_the_prediction(tiny_model, images):
    guidance = tiny_model(inject="structure", how="concat", target="rgb", scales=(2, 1)).guidance
    x, _ = images()
    (_, concat), predictions = guidance(x)
    expected = torch.cat([F.interpolate(p, size=(16, 16), mode="bilinear") for p in predictions], dim=1)
    torch.testing.assert_close(concat, expected)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"target": "hsv"}, "hsv.*gray, rgb, none"),
        ({"inject": "edges"}, "edges.*features, structure"),
        ({"how": "multiply"}, "multiply.*add, concat, both"),
        ({"stop_gradient": True, "target": "none"}, "nothing .* to learn from"),
        ({"scales": (4,)}, r"within 1 .. 3.*\(4,\)"),
        ({"scales": (0, 1)}, "within 1 .. 3"),
        ({"scales": (1, 2), "fold": 4}, "within 2 .. 5"),
        ({"scales": (1, 1)}, "distinct"),
        ({"scales": ()}, "distinct and within"),
    ],
)
def test_wrong_arguments_say_what_is_allowed(changes, message):
    with pytest.raises(ValueError, match=message):
        MultiscaleGuidance(WIDTHS, **changes)


def test_no_guidance_has_the_same_face():
    guidance = NoGuidance()
    assert guidance.scales == () and guidance.concat_channels == 0 and guidance.target == "none"
