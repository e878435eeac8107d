"""The ledger of scores: what was added is there again, nothing is mixed, a torn or damaged line costs itself alone."""

import json

import pytest

from tinymsg.paper.protocol import Ledger

KEY = {"set": "gopro", "image": "a", "setting": {"steps": 5, "max_noise": 0.9}}


def test_what_is_added_is_there_again(tmp_path):
    ledger = Ledger(tmp_path / "new" / "scores.jsonl")
    assert ledger.get(KEY) == {}
    ledger.add(KEY, {"psnr": 30.25})
    ledger.add(KEY, {"niqe": "too small"})
    ledger.add(KEY | {"image": "b"}, {"psnr": 20.0})
    for reader in (ledger, Ledger(ledger.path)):
        assert reader.get(dict(reversed(KEY.items()))) == {"psnr": 30.25, "niqe": "too small"}  # in whatever order
        assert reader.get(KEY | {"image": "b"}) == {"psnr": 20.0}
    with pytest.raises(ValueError):
        ledger.add(KEY, {"psnr": float("inf")})


@pytest.mark.parametrize("torn", [b'{"key"', b'{"key": {"set": "x"}, "scores": {"psnr": 3', b"\x00\x00\x00\x00"])
def test_a_torn_last_line_is_cut_off_and_a_damaged_one_skipped(tmp_path, torn):
    ledger = Ledger(tmp_path / "scores.jsonl")
    ledger.path.write_bytes(b'nonsense\n[1]\n{"key": 3}\n')
    ledger.add(KEY, {"psnr": 30.0})
    whole = ledger.path.read_bytes()
    ledger.path.write_bytes(whole + torn)
    again = Ledger(ledger.path)
    assert ledger.path.read_bytes() == whole and again.get(KEY) == {"psnr": 30.0}
    again.add(KEY | {"image": "b"}, {"psnr": 20.0})
    assert json.loads(ledger.path.read_text().splitlines()[-1])["scores"] == {"psnr": 20.0}
    assert Ledger(ledger.path).get(KEY | {"image": "b"}) == {"psnr": 20.0}
