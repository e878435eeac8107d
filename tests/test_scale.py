"""Scale on paper: what is counted and computed. Nothing is timed here."""

import json
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from tinymsg.training.estimate import gigaflops

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


counted = cache(gigaflops)  # of the full network, which takes seconds


@pytest.fixture
def scale(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("scale", "common"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import scale

    monkeypatch.setattr(scale, "gigaflops", counted)
    return scale


def test_traffic_counts_what_is_read_and_written(scale):
    a, b = torch.zeros(4, 8), torch.zeros(8, 2)
    with scale.Traffic() as counted:
        c = a @ b.view(8, 2)  # 32 + 16 in, 8 out
        c += 1  # 8 in, 8 out
    assert (counted.kernels, counted.bytes) == (2, 4 * (32 + 16 + 8 + 8 + 8))


def test_traffic_grows_with_the_network_and_not_with_the_crops(scale, tiny_recipe):
    recipe = tiny_recipe(crop=16)
    one, two = (scale.traffic(recipe, crops) for crops in (2, 4))
    assert one["kernels"] == two["kernels"] > 100
    assert one["bytes_a_crop"] > two["bytes_a_crop"] > 0.5 * one["bytes_a_crop"]  # the weights are read once a step
    assert scale.traffic(recipe.change(blocks=2), 2)["kernels"] > one["kernels"]


COUNTED = {"kernels": 1000, "bytes_a_crop": 1e9, "parameters": 10_000_000}


def test_a_prediction_in_closed_form(scale):
    """One GPU: compute and memory one after the other, over the efficiency."""
    cluster = scale.Cluster(tflops=100.0, terabytes=2.0, launch=1e-6, price=2.0)
    row = scale.predicted(scale.FULL, COUNTED, cluster, 1, 0.5)
    step = scale.FULL.training.batch * (scale.gigaflops(scale.FULL) / 1e5 + 1e9 / 2e12) / 0.5
    assert (
        row["step_ms"] == pytest.approx(1e3 * step) and row["exchange_ms"] == 0 and row["bound"] == "compute and memory"
    )
    assert row["hours"] == pytest.approx(scale.FULL.training.steps * step / 3600) and row["dollars"] == pytest.approx(
        2 * row["hours"]
    )


def test_many_gpus_wait_for_launches_and_exchange_gradients(scale):
    cluster = scale.Cluster(launch=1.0, inside=1e9, outside=1e8)
    eight, more = (scale.predicted(scale.FULL, COUNTED, cluster, n, 1.0) for n in (8, 64))
    assert eight["bound"] == more["bound"] == "launches"
    assert eight["exchange_ms"] == pytest.approx(1e3 * 2 * 7 / 8 * 4e7 / 1e9) and more["exchange_ms"] == pytest.approx(
        1e3 * 2 * 63 / 64 * 4e7 / 1e8
    )
    assert eight["step_ms"] == pytest.approx(1e6 + eight["exchange_ms"])
    assert more["dollars"] == pytest.approx(64 * more["hours"] * cluster.price)


def test_the_stored_prediction_is_what_the_arithmetic_gives_today(scale):
    results = json.loads((BENCHMARKS / "results" / "scale.json").read_text())
    assert results["assumed"] == json.loads(json.dumps(vars(scale.Cluster())))
    again = [
        [scale.predicted(scale.FULL, results["counted"], scale.Cluster(), row["gpus"], efficiency) for row in rows]
        for rows, efficiency in zip(results["predicted"], scale.Cluster().efficiency, strict=True)
    ]
    assert scale.prediction_table(results | {"predicted": again}) == scale.prediction_table(results)
    assert scale.prediction_table(results).count("\n") == 4
