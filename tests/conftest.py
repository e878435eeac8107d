"""What the tests share: very small configurations, models whose output is not zero, the devices of this machine."""

import contextlib
import os
import random
import signal
import socket
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from jaxtyping import config as jaxtyping_config
from jaxtyping import install_import_hook

# The shapes that the method's functions state are checked at every call: a wrong one fails the test that made it
CHECKED = ("data", "schedule", "unet", "guidance", "model", "train", "sample", "evaluate")
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"  # an int serves as a float
with install_import_hook([f"tinymsg.{name}" for name in CHECKED], CHECKER):
    from gpu_cases import stand_in  # noqa: F401  a fixture

    import tinymsg.evaluate  # noqa: F401  and with it all the others
    from tinymsg.model import Model, Recipe, build_model, save_model

# A shell starts what runs in its background with Ctrl-C ignored, and children inherit that: tests that send it to
# theirs would wait for nothing
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"))]
TINY = {
    "widths": (16, 16, 16, 16),
    "blocks": 1,
    "crop": 16,
    "batch": 2,
    "content_count": 8,
    "steps": 6,
    "warmup": 2,
    "guidance_width": 8,
    "guidance_blocks": 1,
    "precision": "fp32",
}


def pytest_collection_modifyitems(config, items):
    """The long ones run only where -m names them; of the others whole lessons come first, so that none ends alone."""
    if "course" not in (config.option.markexpr or ""):
        long = [item for item in items if item.get_closest_marker("course")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if not item.get_closest_marker("course")]
    items.sort(key=lambda item: not item.get_closest_marker("notebook"))


@pytest.fixture(scope="session", autouse=True)
def whatever_machine(tmp_path_factory):
    """No download, no setting or cache of the user's, no proxy before our own servers, here and in what tests start."""

    def refuse(*_, **__):
        raise URLError("no downloads in tests")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.hub, "download_url_to_file", refuse)
        for name in ("TORCH_HOME", "IPYTHONDIR"):
            patch.setenv(name, str(tmp_path_factory.mktemp(name.lower())))
        for name in ("no_proxy", "NO_PROXY"):
            patch.setenv(name, ",".join(filter(None, [os.environ.get(name), "127.0.0.1", "localhost"])))
        if torch.cuda.is_available():  # closed forms are compared in fp32 that is fp32, and runs with each other
            patch.setattr(torch.backends.cudnn, "allow_tf32", False)
            patch.setattr(torch.backends.cudnn, "deterministic", True)
        yield


@pytest.fixture(scope="session")
def free_port():
    """free_port() -> a port that is free now, below those that a system gives away by itself meanwhile."""

    def draw() -> int:
        while True:
            port = random.SystemRandom().randrange(20000, 32000)  # two processes of tests do not draw the same
            with contextlib.suppress(OSError), socket.socket() as probe:
                probe.bind(("", port))
                return port

    return draw


@pytest.fixture(params=DEVICES)
def device(request) -> torch.device:
    """The CPU, and the GPU where there is one."""
    return torch.device(request.param)


@pytest.fixture
def unchecked_shapes(monkeypatch):
    """Shapes are not checked in this test: torch.compile cannot look through the checks."""
    monkeypatch.setattr(jaxtyping_config, "jaxtyping_disable", True)


@pytest.fixture
def tiny_recipe():
    """tiny_recipe(**changes) -> a Recipe of some ten thousand parameters."""
    return lambda **changes: Recipe().change(**(TINY | changes))


@pytest.fixture
def tiny_model(tiny_recipe):
    """tiny_model(**changes) -> a Model in evaluation mode, every weight random.

    A new model answers with zeros (its last layers start at zero), which would hide almost any mistake.
    """

    def make(**changes) -> Model:
        model = build_model(tiny_recipe(**changes).network).eval()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weight in model.parameters():
                fan_in = weight[0].numel() if weight.ndim > 1 else 1
                weight.copy_(torch.randn(weight.shape, generator=generator) / fan_in**0.5)
        return model

    return make


@pytest.fixture
def images():
    """images(b, c, h, w) -> (y0, x), two different random batches in [-1, 1]."""

    def make(b: int = 2, c: int = 3, h: int = 16, w: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(5)
        return tuple(torch.rand(b, c, h, w, generator=generator) * 2 - 1 for _ in range(2))

    return make


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    """A tiny guided model whose output is not simply its input."""
    model = build_model(Recipe().change(**TINY).network)
    torch.nn.init.normal_(model.unet.conv_out.weight, std=0.05, generator=torch.Generator().manual_seed(0))
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_model(model, path)
    return path


@pytest.fixture(scope="session")
def bsds500() -> Path:
    """The folder of natural photographs that may lie beside the repository."""
    folder = ROOT.parent / "shared" / "data" / "bsds500"
    if not folder.is_dir():
        pytest.skip("the BSDS500 photographs are not here: ../shared/data/bsds500 is missing")
    return folder
