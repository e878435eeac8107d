"""The comparison with peers: its arithmetic, its table, its turn-taking. Nothing is timed here."""

import contextlib
import copy
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("bench", "peers", "loader", "common"):
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
    results = {
        "about": ABOUT,
        "train": {"2": {"ours": row, "other": row | {"ratio": 3.0}}},
        "sample": {"8x8": {"ours": row}},
        "shares": {"ours": {"convolution": 0.75, "normalisation": 0.05, "activation": 0.1, "the rest": 0.1}},
        "folder": folder,
        "memory_training": {"ours": 1.5, "other": 2.5},
        "memory_sampling": {"8x8": {"ours": 0.5}},
        "limits": {"precision": "bf16", "conv_tflops": 0.24, "matmul_tflops": 0.48, "copy_gbs": 9.0},
        "machine": "m",
        "torch": "t",
        "rounds": 3,
    }
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


class _Mortal:
    """Stands in for a contender's pipe: answers as `serve` does, and dies at a kind of request."""

    def __init__(self, dies_at: str = ""):
        self.dies_at, self.dead, self.asked = dies_at, False, None

    def send(self, request):
        if self.dead:
            raise BrokenPipeError
        self.asked = request[0]

    def recv(self):
        self.dead = self.asked == self.dies_at
        if self.dead:
            raise ConnectionResetError if self.asked == "memory" else EOFError
        shares = dict.fromkeys(("convolution", "normalisation", "activation", "the rest"), 0.25)
        return {
            "about": ABOUT["ours"],
            "train": 2.0,
            "sample": (0.5, 1.0),
            "folder": (2.0, 0.1),
            "profile": shares,
            "memory": 1.5,
        }[self.asked]


def _run(bench, monkeypatch, **deaths) -> tuple[dict, list[dict]]:
    """(the results, what was kept after each part) of a run in which contenders die at these requests."""

    @contextlib.contextmanager
    def new_field():
        field = object.__new__(bench.Field)
        field.pipes = {name: _Mortal(deaths.get(name, "")) for name in ("ours", "other", "third")}
        yield field

    monkeypatch.setattr(bench, "make_pictures", lambda *_: None)
    monkeypatch.setattr(bench, "folder_pairs", lambda *_: [])
    monkeypatch.setattr(bench, "pack", lambda *_: None)
    kept = []
    results = bench.measure(
        new_field, [2, 8], [(8, 8)], 2, 4, lambda line: None, lambda found: kept.append(copy.deepcopy(found))
    )
    limits = {"precision": "bf16", "conv_tflops": 0.24, "matmul_tflops": 0.48, "copy_gbs": 9.0}
    return results | {"limits": limits, "machine": "m", "torch": "t", "rounds": 2}, kept


@pytest.mark.parametrize("kind", ["about", "train", "profile", "memory", "sample", "folder"])
def test_one_that_dies_anywhere_has_failed_and_the_rest_goes_on(bench, monkeypatch, tmp_path, kind):
    results, _ = _run(bench, monkeypatch, other=kind)
    row = next(line for line in bench.markdown(results).splitlines() if line.startswith("| other |"))
    assert ("failed" in row) == (kind not in ("profile", "memory")) and list(results["about"]) == [
        "ours",
        "other",
        "third",
    ]
    assert all(set(table) >= {"ours", "third"} for table in bench.panels(results).values())
    assert ("other" in results["shares"]) == (kind not in ("about", "train", "profile"))
    assert ("other" in results["memory_training"]) == (kind in ("sample", "folder"))
    bench.picture(results, tmp_path / "bench.png")


@pytest.mark.parametrize("kind", ["about", "train"])
def test_without_ours_nothing_is_compared_and_that_is_said(bench, monkeypatch, kind):
    results, _ = _run(bench, monkeypatch, ours=kind)
    assert results["train"] == {"2": {}, "8": {}} and "Ours failed: nothing can be compared" in bench.markdown(results)


def test_what_was_measured_is_kept_after_each_part(bench, monkeypatch):
    results, kept = _run(bench, monkeypatch)
    assert [len(bench.panels(found)) for found in kept] == [1, 2, 3, 4] and kept[-1].items() <= results.items()


def test_ours_is_always_among_the_contenders(bench):
    assert bench.with_ours(["sr3"]) == ("ours", "sr3") and bench.with_ours(["sr3", "ours"]) == ("ours", "sr3")


def test_a_run_writes_as_it_goes(bench, monkeypatch, tmp_path):
    """An early end leaves the last results whole, and what it has in bench.json.part."""
    out = tmp_path / "results"
    monkeypatch.setattr(sys, "argv", ["bench.py", "--device", "cpu", "--contenders", "sr3", "--out", str(out)])
    monkeypatch.setattr(bench, "machine_limits", lambda device: {})
    monkeypatch.setattr(bench.metadata, "version", lambda name: "1")

    def cut_short(new_field, *arguments):
        arguments[-1]({"train": {"2": {}}})
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "measure", cut_short)
    with pytest.raises(KeyboardInterrupt):
        bench.main()
    assert [path.name for path in out.iterdir()] == ["bench.json.part"]
    assert json.loads((out / "bench.json.part").read_text())["train"] == {"2": {}}
    monkeypatch.setattr(bench, "measure", lambda *_: {"train": {}})
    monkeypatch.setattr(bench, "markdown", lambda results: "text")
    monkeypatch.setattr(bench, "picture", lambda results, path: None)
    bench.main()
    assert sorted(path.name for path in out.iterdir()) == ["bench.json", "bench.md"]


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
            assert {k: bench.os.environ.get(k) for k in bench.ALLOCATOR} == (
                bench.ALLOCATOR if wanted else dict.fromkeys(bench.ALLOCATOR)
            )
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
        pairs = zip(before, contender.network.parameters(), strict=True)
        assert any((new.abs() > old.abs()).any() for old, new in pairs), f"{name}: weight decay alone only shrinks"
        contender.begin(x)
        contender.step()
    flops = [peers.Contender(n, 32, torch.device("cpu"), 1).gigaflops() for n in ("ours", "sr3")]
    assert flops[0] == pytest.approx(flops[1], rel=0.05)


def test_all_learn_from_the_same_folder(bench, tmp_path):
    import peers
    from PIL import Image

    from tinymsg.datasets.folders import folder_pairs
    from tinymsg.datasets.packing import pack

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
