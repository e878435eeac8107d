import json

import pytest

from tinymsg.paper.ledger import Ledger, digest

KEY = {"set": "gopro", "image": "a", "setting": {"steps": 5, "max_noise": 0.9}}


def test_what_is_added_is_there_again(tmp_path):
    ledger = Ledger(tmp_path / "new" / "scores.jsonl")
    assert ledger.get(KEY) == {}
    ledger.add(KEY, {"psnr": 30.25})
    ledger.add(KEY, {"niqe": "too small"})
    ledger.add(KEY | {"image": "b"}, {"psnr": 20.0})
    for reader in (ledger, Ledger(ledger.path)):
        assert reader.get(KEY) == {"psnr": 30.25, "niqe": "too small"}
        assert reader.get(dict(reversed(KEY.items()))) == reader.get(KEY)  # the order of a key's parts is no part of it
        assert reader.get(KEY | {"image": "b"}) == {"psnr": 20.0}


@pytest.mark.parametrize(
    "change", [{"image": "c"}, {"set": "hide"}, {"setting": {"steps": 6, "max_noise": 0.9}}, {"seed": 1}]
)
def test_a_changed_setting_never_mixes(tmp_path, change):
    ledger = Ledger(tmp_path / "scores.jsonl")
    ledger.add(KEY, {"psnr": 30.0})
    assert ledger.get(KEY | change) == {} and digest(KEY | change) != digest(KEY)


@pytest.mark.parametrize("torn", [b'{"key"', b'{"key": {"set": "x"}, "scores": {"psnr": 3', b"\x00\x00\x00\x00"])
def test_a_torn_last_line_is_cut_off(tmp_path, torn):
    ledger = Ledger(tmp_path / "scores.jsonl")
    ledger.add(KEY, {"psnr": 30.0})
    whole = ledger.path.read_bytes()
    ledger.path.write_bytes(whole + torn)
    again = Ledger(ledger.path)
    assert ledger.path.read_bytes() == whole and again.get(KEY) == {"psnr": 30.0}
    again.add(KEY | {"image": "b"}, {"psnr": 20.0})
    assert [json.loads(line)["scores"]["psnr"] for line in ledger.path.read_text().splitlines()] == [30.0, 20.0]


def test_damaged_lines_are_done_again_and_the_rest_stays(tmp_path):
    ledger = Ledger(tmp_path / "scores.jsonl")
    ledger.add(KEY, {"psnr": 30.0})
    with open(ledger.path, "ab") as file:
        file.write(b'nonsense\n[1]\n{"key": 3}\n')
    ledger.add(KEY | {"image": "b"}, {"psnr": 20.0})
    again = Ledger(ledger.path)
    assert again.get(KEY) == {"psnr": 30.0} and again.get(KEY | {"image": "b"}) == {"psnr": 20.0}


def test_numbers_that_are_none_are_refused(tmp_path):
    with pytest.raises(ValueError):
        Ledger(tmp_path / "scores.jsonl").add(KEY, {"psnr": float("inf")})
