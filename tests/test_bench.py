"""The comparison with peers: its arithmetic, its table, its turn-taking. Nothing is timed here."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("bench", "peers", "loader"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import bench

    return bench


ABOUT = {"ours": {"gflop": 10.0, "parameters_M": 1.0}, "other": {"gflop": 20.0, "parameters_M": 2.0}}


def test_ratios_are_within_a_round_and_at_equal_flops(bench):
    table = bench.ratios({"ours": [1.0, 2.0, 4.0], "other": [4.0, 8.0, 24.0]}, ABOUT)
    assert table["ours"] == {"seconds": 2.0, "ratio": 1.0, "low": 1.0, "high": 1.0}
    assert table["other"] == {"seconds": 8.0, "ratio": 2.0, "low": 2.0, "high": 3.0}


def test_the_table_names_every_contender_and_who_failed(bench, tmp_path):
    row = {"seconds": 0.5, "ratio": 1.0, "low": 0.9, "high": 1.1}
    folder = {"batch": 2, "rows": {"ours": row | {"waiting": 0.002}, "other": row | {"ratio": 5.0, "waiting": 0.25}}}
    results = {"about": ABOUT, "train": {"2": {"ours": row, "other": row | {"ratio": 3.0}}}, "sample": {"8x8": {"ours": row}},
               "shares": {"ours": {"convolution": 0.75, "normalisation": 0.05, "activation": 0.1, "the rest": 0.1}},
               "folder": folder, "memory_training": {"ours": 1.5, "other": 2.5}, "memory_sampling": {"8x8": {"ours": 0.5}},
               "limits": {"precision": "bf16", "conv_tflops": 0.24, "matmul_tflops": 0.48, "copy_gbs": 9.0}, "machine": "m", "torch": "t", "rounds": 3}  # fmt: skip
    text = bench.markdown(results)
    assert "| other | 2.0 | 20.0 | 3.00x (0.90 to 1.10) | 5.00x (0.90 to 1.10) | failed |" in text
    assert "| ours | 1.5 | 0.5 | 0.20% |" in text and "| other | 2.5 | failed | 25.00% |" in text
    assert "| ours | 75% | 5% | 10% | 10% |" in text
    assert "4.0 crops a second at 2, 0.12 TFLOP/s, 50% of this machine's own convolution in bf16" in text
    bench.picture(results, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").stat().st_size > 3000


class _Pipe:
    def __init__(self, log, name, dies=False):
        self.log, self.name, self.dies = log, name, dies

    def send(self, request):
        self.log.append(self.name)

    def recv(self):
        if self.dies:
            raise EOFError
        return len(self.log)


def test_they_take_turns_and_one_that_dies_is_left_out(bench):
    log = []
    field = object.__new__(bench.Field)
    field.pipes = {"a": _Pipe(log, "a"), "b": _Pipe(log, "b"), "c": _Pipe(log, "c", dies=True)}
    answers = field.rounds(("train", 2, 1), rounds=2)
    assert log == ["a", "b", "c", "a", "b"] and answers == {"a": [1, 4], "b": [2, 5]}


def test_shares_sort_operations_and_sum_to_one(bench):
    layer, image = torch.nn.Conv2d(8, 8, 3), torch.randn(2, 8, 64, 64)
    found = bench.shares(lambda: layer(image), torch.device("cpu"))
    assert found["convolution"] > 0 and found["activation"] == found["normalisation"] == 0
    assert sum(found.values()) == pytest.approx(1, abs=0.01)
    other = bench.shares(lambda: torch.nn.functional.silu(image), torch.device("cpu"))
    assert other["activation"] > 0 and other["convolution"] == 0


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator settings")
def test_ours_and_the_tuned_start_with_our_allocator_settings_the_shipped_without(bench, monkeypatch):
    for name in bench.ALLOCATOR:
        monkeypatch.setenv(name, "0")
    before = dict(bench.os.environ)
    for name, wanted in (("ours", True), ("ours, guided", True), ("sr3", False), ("sr3, tuned", True)):
        with bench.allocator_of(name):
            assert {k: bench.os.environ.get(k) for k in bench.ALLOCATOR} == (bench.ALLOCATOR if wanted else dict.fromkeys(bench.ALLOCATOR))
        assert dict(bench.os.environ) == before


def test_every_contender_trains_and_steps(bench):
    import peers

    names = [n for n in peers.CONTENDERS if importlib.util.find_spec(n.split(",")[0]) or n.startswith(("ours", "sr3"))]
    assert len(names) >= 4
    y0, x = (torch.rand(1, 3, 16, 16) for _ in range(2))
    for name in names:
        contender = peers.Contender(name, 32, torch.device("cpu"), 1)
        before = [p.detach().clone() for p in contender.network.parameters()]
        contender.train(lambda step: (y0, x))
        assert any(not torch.equal(a, b) for a, b in zip(before, contender.network.parameters(), strict=True)), name
        contender.begin(x)
        contender.step()
    flops = [peers.Contender(n, 32, torch.device("cpu"), 1).gigaflops() for n in ("ours", "sr3")]
    assert flops[0] == pytest.approx(flops[1], rel=0.05)


def test_all_learn_from_the_same_folder(bench, tmp_path):
    import peers
    from PIL import Image
    from tinymsg.datasets.packing import folder_pairs, pack

    for side, shade in (("sharp", 200), ("blur", 100)):
        (tmp_path / "pictures" / side).mkdir(parents=True)
        Image.new("RGB", (140, 130), (shade, shade, 0)).save(tmp_path / "pictures" / side / "a.png")
    pack(folder_pairs(tmp_path / "pictures"), tmp_path / "packed", "test", workers=1)
    for name in ("ours", "sr3", "sr3, tuned"):
        contender = object.__new__(peers.Contender)
        contender.device, contender.batch = torch.device("cpu"), 2
        contender.kind, _, variant = name.partition(", ")
        contender.ours, contender.tuned = name == "ours", bool(variant)
        y0, x = contender.source(tmp_path / "pictures", tmp_path / "packed")(0)
        assert y0.shape == x.shape == (2, 3, 128, 128)
        torch.testing.assert_close(y0[:, :2], torch.full((2, 2, 128, 128), 200 / 127.5 - 1))
        torch.testing.assert_close(x[:, :2], torch.full((2, 2, 128, 128), 100 / 127.5 - 1))
