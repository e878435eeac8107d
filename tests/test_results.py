import hashlib
import json
import math
from pathlib import Path

import pytest

from tinymsg import __version__
from tinymsg.evaluate import provenance, read_results, write_results
from tinymsg.machine import sha256


def test_results_come_back_as_they_were(tmp_path):
    results = {
        "command": "x --set widths=[ 1, 2 ] \n[\n3 ]",
        "list": [1, 2.5, "a, [ b ]", None],
        "open": ["x [ a", "b"],
        "empty": [],
        "no": {},
        "nested": [[1, 2], [3, 4]],
        "of dicts": [{"a": 1}, {"b": [1, 2]}],
        "words": ["é", "{", "]", "["],
    }
    path = tmp_path / "new" / "folder" / "results.json"
    write_results(path, results)
    assert read_results(path) == results
    raw = json.loads(path.read_text())
    assert len(raw.pop("digest")) == 64 and raw == results
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]


def test_a_list_of_numbers_takes_one_line(tmp_path):
    path = tmp_path / "results.json"
    write_results(path, {"per_image": {"psnr": [20.5, 21.25, 30.0]}})
    assert '"psnr": [20.5, 21.25, 30.0]' in path.read_text()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused_and_the_old_file_stays(tmp_path, value):
    path = tmp_path / "results.json"
    write_results(path, {"psnr": 1.0})
    with pytest.raises(ValueError):
        write_results(path, {"psnr": value})
    assert read_results(path) == {"psnr": 1.0} and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "old, new", [("20.5", "20.6"), ('"plain"', '"guided"'), ('"digest"', '"digset"'), ("21.25, ", "")]
)
def test_a_number_changed_by_hand_is_found(tmp_path, old, new):
    path = tmp_path / "results.json"
    write_results(path, {"command": "python -m tinymsg evaluate", "arm": "plain", "psnr": [20.5, 21.25, 30.0]})
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(ValueError, match="changed by hand; run its command again"):
        read_results(path)


SHIPPED = sorted((Path(__file__).resolve().parents[1] / "notebooks/results").glob("*.json"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.name)
def test_the_lessons_results_are_as_their_commands_wrote_them(path):
    assert read_results(path)["command"].startswith("python -m tinymsg ")


def test_provenance_says_how_it_came_about(monkeypatch):
    origin = provenance(["evaluate", "--count", "3"])
    assert origin["command"] == "python -m tinymsg evaluate --count 3" and origin["tinymsg"] == __version__
    assert {"torch", "numpy"} <= origin["packages"].keys() and origin["python"].startswith("3.")
    monkeypatch.setattr("sys.argv", ["tinymsg", "train"])
    assert provenance()["command"] == "python -m tinymsg train"


def test_sha256_of_a_file_larger_than_its_chunks(tmp_path):
    content = b"tinymsg" * 400_000
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()
