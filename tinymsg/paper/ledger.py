"""Results that come one by one over hours, on disk: they survive a kill, and say what they are of."""

import hashlib
import json
import os
from pathlib import Path


def digest(key: dict | list) -> str:
    """Twelve hex digits that stand for a key of JSON values."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]


class Ledger:
    """Scores on disk: one JSON object a line, each synced as it is added. A torn last line is cut off, and done again."""

    def __init__(self, path: str | Path):
        self.path, self._scores = Path(path), {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch()
        whole = self.path.read_bytes()
        whole = whole[: whole.rfind(b"\n") + 1]
        with open(self.path, "r+b") as file:
            file.truncate(len(whole))
        for line in whole.splitlines():
            try:
                record = json.loads(line)
                self._scores.setdefault(digest(record["key"]), {}).update(record["scores"])
            except (ValueError, KeyError, TypeError):
                continue  # a damaged line: what it held is done again

    def get(self, key: dict) -> dict:
        """Scores of a key by metric; a value is a number, or a sentence that says why there is none."""
        return self._scores.get(digest(key), {})

    def add(self, key: dict, scores: dict) -> None:
        """Append scores; later ones of the same key and metric win."""
        line = json.dumps({"key": key, "scores": scores}, allow_nan=False) + "\n"
        with open(self.path, "ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
        self._scores.setdefault(digest(key), {}).update(scores)
