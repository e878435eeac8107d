"""The README promises nothing that is not there, and quotes the results file."""

import dataclasses
import json
import re
from pathlib import Path

from tinymsg.evaluate import markdown_table
from tinymsg.model import PROFILES, Config
from tinymsg.results import read_results
from tinymsg.studies import headline_table
from tinymsg.training.estimate import table_text

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def quoted(name: str) -> str:
    return README.split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0].strip()


def test_the_tables_are_the_results_files():
    assert quoted("photos") == markdown_table(read_results(ROOT / "notebooks/results/photos.json"))
    assert quoted("headline") == headline_table(read_results(ROOT / "notebooks/results/pictures.json"))


def test_few_evaluations_do_what_is_said_of_them():
    rows = read_results(ROOT / "notebooks/results/steps.json")["rows"]
    long = next(
        row for row in rows if (row["sampler"], row["start"], row["evaluations"]) == ("ancestral", "noise", 250)
    )
    psnr, spectral = long["psnr"]["mean"], long["spectral"]["mean"]
    few = min(
        (r for r in rows if r["psnr"]["mean"] >= psnr and r["spectral"]["mean"] <= spectral),
        key=lambda r: r["evaluations"],
    )
    assert quoted("few") == (
        f"{few['evaluations']} evaluations of {few['sampler']} from {few['start']} ({few['psnr']['mean']:.2f} dB, spectral distance "
        f"{few['spectral']['mean']:.3f}) are no worse than 250 of ancestral from noise ({psnr:.2f} dB, {spectral:.3f})"
    )


def test_what_is_said_of_speed_is_what_was_measured(monkeypatch):
    results = ROOT / "benchmarks/results"
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import bench
    import scale

    for name, text in (
        ("bench", bench.markdown(json.loads((results / "bench.json").read_text()))),
        ("scale", scale.measured_table((stored := json.loads((results / "scale.json").read_text()))["measured"])),
        ("cost", scale.prediction_table(stored)),
    ):
        assert quoted(name) == text.strip(), f"README's {name} table is not that of the results file"
    counted = stored["counted"]
    assert f"{counted['gflop_a_crop']:.1f} GFLOP, {counted['bytes_a_crop'] / 1e9:.2f} GB of memory traffic" in README
    assert f"a crop, {counted['kernels']:,} kernels a step" in README


def test_every_linked_file_exists():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert len(links) > 5
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_house_is_drawn_as_it_stands():
    drawn = set(re.findall(r"^  (\w+\.py) ", README, flags=re.M))
    assert drawn == {p.name for p in (ROOT / "tinymsg").glob("*.py")} - {"__init__.py"}


def test_make_targets_exist():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.M))
    assert set(re.findall(r"`make (\w+)`", README)) <= targets


def test_the_batch_sizes_in_the_readme_are_the_computed_ones():
    assert quoted("cards") == table_text(dataclasses.replace(Config(), **PROFILES["full"]))
