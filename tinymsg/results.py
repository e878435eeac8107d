"""Results files: JSON written by commands, never by hand, with all that says how they came about.

A file carries a digest of its own content: a number that was changed by hand is found when the file is read.
"""

import hashlib
import json
import platform
import re
import shlex
import sys
from importlib import metadata
from pathlib import Path

from . import __version__


def provenance(command: list[str] | None = None) -> dict:
    """What a results file must say about how it came about."""
    packages = ("torch", "torchvision", "numpy", "torchmetrics", "lpips", "scikit-image")
    installed = {d.metadata["Name"] for d in metadata.distributions()}
    return {
        "command": "python -m tinymsg " + shlex.join(sys.argv[1:] if command is None else command),
        "tinymsg": __version__,
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in packages if name in installed},
    }


def write_results(path: str | Path, results: dict) -> None:
    """Write a results file: JSON with a digest of its content, atomic, with non-finite numbers refused."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"digest": _digest(results)} | results, indent=1, allow_nan=False)
    # One list of numbers a line: readable differences between two versions of a file
    partial = path.with_name(path.name + ".part")
    partial.write_text(_compact_lists(text) + "\n")
    partial.replace(path)


def _compact_lists(text: str) -> str:
    # A line break stands between brackets, never within a string: there JSON writes \n
    return re.sub(r"\[\n\s*([^\[\]{}]*?)\n\s*\]", lambda m: "[" + re.sub(r"\s*\n\s*", " ", m.group(1)) + "]", text)


def read_results(path: str | Path) -> dict:
    """Read what `write_results` wrote.

    Raises: ValueError if it is not as the command wrote it.
    """
    results = json.loads(Path(path).read_text())
    if results.pop("digest", None) != _digest(results):
        raise ValueError(
            f"{path} is not as a command wrote it: something was changed by hand; run its command again "
            f"({results.get('command', 'not stated')})"
        )
    return results


def _digest(results: dict) -> str:
    return hashlib.sha256(json.dumps(results, sort_keys=True, allow_nan=False).encode()).hexdigest()


def sha256(path: str | Path) -> str:
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()
