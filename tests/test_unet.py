import pytest
import torch
import torch.nn.functional as F
from jaxtyping import TypeCheckError
from torch._subclasses.fake_tensor import FakeTensorMode

from tinymsg.guidance import NoGuidance
from tinymsg.unet import Features, GroupNorm, NoiseEmbedding, ResBlock, UNet, conv

LEVEL = torch.tensor([0.3, 0.8])
TYPES = (torch.bfloat16, torch.float32)


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    """Every weight random: the layers that start at zero would hide mistakes."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in module.parameters():
            fan_in = weight[0].numel() if weight.ndim > 1 else 1
            weight.copy_(torch.randn(weight.shape, generator=generator) / fan_in**0.5)
    return module.eval()


@pytest.mark.parametrize("h, w", [(8, 8), (16, 40), (64, 8)])
@pytest.mark.parametrize("channels, blocks", [(3, 1), (1, 2)])
def test_any_size_that_is_a_multiple(images, h, w, channels, blocks, device):
    unet = randomised(UNet(channels, (16, 32, 16, 24), blocks)).to(device)
    assert unet.multiple == 8
    y_t, x = (image.to(device) for image in images(2, channels, h, w))
    out = unet(y_t, x, LEVEL.to(device))
    assert out.shape == x.shape and torch.isfinite(out).all() and out.std() > 0.01


@pytest.mark.parametrize("widths", [(16,), (16, 32), (16, 16, 16, 16, 16)])
def test_any_depth(images, widths):
    unet = randomised(UNet(3, widths, 1))
    assert unet.multiple == 2 ** (len(widths) - 1)
    assert unet(*images(), LEVEL).shape == (2, 3, 16, 16)


def test_one_dimension_keeps_height_one(images):
    unet = randomised(UNet(1, (16, 16, 16, 16), 1, dims=1))
    out = unet(*images(2, 1, 1, 32), LEVEL)
    assert out.shape == (2, 1, 1, 32) and out.std() > 0.01
    assert all(layer.kernel_size[0] == 1 for layer in unet.modules() if isinstance(layer, torch.nn.Conv2d))
    # Rows are independent signals: the height is free
    y_t, x = images(2, 1, 3, 32)
    assert unet(y_t, x, LEVEL).shape == x.shape


def test_output_starts_at_zero(images):
    assert (UNet(3, (16, 16))(*images(), LEVEL) == 0).all()


def test_output_depends_on_all_three_inputs_and_rows_do_not_mix(images):
    unet = randomised(UNet(3, (16, 16, 16, 16), 1))
    y_t, x = images()
    out = unet(y_t, x, LEVEL)
    assert (unet(-y_t, x, LEVEL) - out).abs().mean() > 1e-3
    assert (unet(y_t, -x, LEVEL) - out).abs().mean() > 1e-3
    assert (unet(y_t, x, LEVEL + 0.001) - out).abs().mean() > 1e-4
    torch.testing.assert_close(unet(y_t[1:], x[1:], LEVEL[1:]), out[1:], rtol=1e-4, atol=1e-4)


def test_fully_convolutional(images):
    """Moved by the coarsest stride, the inside of the output moves along: no position is built in."""
    unet = randomised(UNet(3, (16, 16), 1))
    for module in unet.modules():  # the norm looks at the whole image; without it the field of view is finite
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = lambda h: h
    y_t, x = images(2, 3, 64, 64)
    out = unet(y_t, x, LEVEL)
    moved = unet(y_t.roll(2, -1), x.roll(2, -1), LEVEL)
    inside = slice(26, 38)
    torch.testing.assert_close(moved[..., inside, inside], out.roll(2, -1)[..., inside, inside], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("fold", [2, 4])
def test_a_folded_network_is_one_on_fewer_pixels(images, fold):
    """Row i of a block of pixels, column j, channel c -> one channel; and back: nothing is lost on the way."""
    unet = randomised(UNet(3, (16, 24), 1, fold=fold))
    assert unet.multiple == 2 * fold
    y_t, x = images(2, 3, 8 * fold, 4 * fold)
    inner = randomised(UNet(3, (16, 24), 1, fold=fold))
    inner.fold = 1  # the same weights, given what is folded already
    blocks = [image.reshape(2, 3, 8, fold, 4, fold).permute(0, 1, 3, 5, 2, 4).flatten(1, 3) for image in (y_t, x)]
    out = inner(*blocks, LEVEL).reshape(2, 3, fold, fold, 8, 4).permute(0, 1, 4, 2, 5, 3).reshape(x.shape)
    torch.testing.assert_close(unet(y_t, x, LEVEL), out, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dims", [1, 2])
def test_no_guidance_leaves_the_output_unchanged_to_the_bit(images, dims):
    unet = randomised(UNet(3, (16, 16, 16, 16), 1, dims=dims))
    y_t, x = images(2, 3, 1 if dims == 1 else 16, 16)
    features, predictions = NoGuidance()(x)
    assert predictions == () and not list(NoGuidance().parameters())
    assert torch.equal(unet(y_t, x, LEVEL, features), unet(y_t, x, LEVEL))


@pytest.mark.parametrize("k, fold", [(0, 1), (1, 1), (2, 1), (3, 1), (1, 2), (3, 2), (2, 4), (4, 4)])
def test_added_features_enter_at_the_level_of_their_size(images, k, fold):
    """Added after the level's last block: the same as a bias of that block's last convolution."""
    unet = randomised(UNet(3, (16, 24, 32, 16)[: 4 if fold == 1 else 3], 2, fold=fold))
    y_t, x = images()
    level = k - {1: 0, 2: 1, 4: 2}[fold]
    width = unet.widths[level]
    bias = torch.randn(width, generator=torch.Generator().manual_seed(3))
    feature = bias[None, :, None, None].expand(2, width, 16 >> k, 16 >> k)
    out = unet(y_t, x, LEVEL, Features({k: feature}, None))
    plain = unet(y_t, x, LEVEL)
    assert (out - plain).abs().mean() > 1e-3
    with torch.no_grad():
        unet.down[level][-1].conv_2.bias += bias
    torch.testing.assert_close(unet(y_t, x, LEVEL), out, rtol=1e-3, atol=1e-4)


def test_zero_features_change_nothing(images):
    unet = randomised(UNet(3, (16, 16, 16, 16), 1, concat=5))
    y_t, x = images()
    zeros = {k: torch.zeros(2, 16, 16 >> k, 16 >> k) for k in (1, 2, 3)}
    concat = torch.randn(2, 5, 16, 16, generator=torch.Generator().manual_seed(1))
    out = unet(y_t, x, LEVEL, Features({}, concat))
    assert torch.equal(unet(y_t, x, LEVEL, Features(zeros, concat)), out)
    assert (unet(y_t, x, LEVEL, Features({}, -concat)) - out).abs().mean() > 1e-3


def test_wrong_inputs_say_what_was_expected(images):
    unet = UNet(3, (16, 16, 16, 16), 1)
    y_t, x = images()
    with pytest.raises(ValueError, match="one shape"):
        unet(y_t[..., :8], x, LEVEL)
    with pytest.raises(ValueError, match="multiples of 8.* 16x12"):
        unet(y_t[..., :12], x[..., :12], LEVEL)
    with pytest.raises(ValueError, match="multiples of 8.* 12x16"):
        unet(y_t[..., :12, :], x[..., :12, :], LEVEL)
    for level in (LEVEL[:1], LEVEL[:, None], torch.tensor(0.5)):
        with pytest.raises((ValueError, TypeCheckError), match="noise_level"):
            unet(y_t, x, level)
    with pytest.raises(ValueError, match="4 guidance channels"):
        UNet(3, (16, 16), 1, concat=4)(y_t, x, LEVEL)


def test_noise_embedding_tells_close_levels_apart():
    embedding = NoiseEmbedding(32, 64)
    angle = torch.tensor([0.5, 0.5002])[:, None] * embedding.frequency
    features = torch.cat([angle.sin(), angle.cos()], dim=-1)
    assert (features[0] - features[1]).abs().max() > 0.5
    assert embedding.frequency[0] == 5000 and 0.5 < embedding.frequency[-1] < 2
    assert embedding(torch.tensor([0.1, 0.2, 0.9])).shape == (3, 64)
    assert not embedding.state_dict().keys() & {"frequency"}  # not a weight: not saved


def test_res_block_starts_as_its_skip():
    h = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    e = torch.randn(2, 32, generator=torch.Generator().manual_seed(1))
    assert torch.equal(ResBlock(16, 16, 32, 2)(h, e), h)
    wider = ResBlock(16, 24, 32, 2)
    assert torch.equal(wider(h, e), wider.skip(h))


def test_res_block_closed_form():
    block = randomised(ResBlock(16, 24, 32, 2))
    h = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    e = torch.randn(2, 32, generator=torch.Generator().manual_seed(1))
    scale, shift = (e @ block.modulate.weight.T + block.modulate.bias).reshape(2, 2, 24, 1, 1).unbind(1)
    out = block.norm_2(block.conv_1(F.silu(block.norm_1(h)))) * (1 + scale) + shift
    torch.testing.assert_close(block(h, e), block.skip(h) + block.conv_2(F.silu(out)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 8, 16, 24, 40, 48, 128, 136])
def test_group_norm_divides_its_channels(channels):
    norm = GroupNorm(channels)
    assert channels % norm.num_groups == 0
    assert channels < 32 or channels // norm.num_groups >= 16
    h = 5 + 3 * torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    groups = norm(h).reshape(2, norm.num_groups, -1)
    torch.testing.assert_close(groups.mean(dim=-1), torch.zeros(2, norm.num_groups), rtol=0, atol=1e-5)
    torch.testing.assert_close(groups.var(dim=-1, unbiased=False), torch.ones(2, norm.num_groups), rtol=1e-4, atol=0)


def test_group_norm_keeps_the_type_of_its_input_under_cudas_autocast():
    """Whose list has it in fp32, in and out: 1.9 times the memory. Shown by tensors that have a type and no values."""
    before = torch.is_autocast_enabled("cuda")
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"):
        norm, plain = GroupNorm(32), torch.nn.GroupNorm(2, 32)
        torch.set_autocast_enabled("cuda", True)
        try:
            types = [[layer(torch.zeros(1, 32, 4, 4, dtype=t)).dtype for t in TYPES] for layer in (norm, plain)]
        finally:
            torch.set_autocast_enabled("cuda", before)
    assert types == [list(TYPES), [torch.float32] * 2]  # the plain one guards this test: so the list is at work


def test_conv_keeps_the_size():
    for dims, shape in ((1, (2, 3, 1, 9)), (2, (2, 3, 7, 9))):
        for size in (1, 3):
            assert conv(3, 5, dims, size)(torch.zeros(shape)).shape == (2, 5, *shape[2:])
