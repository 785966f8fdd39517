"""Rows of a coverage benchmark on disk, one JSON line a model, and which of them still hold."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import growkit
from growkit.bench.catalogue import Entry, source_hash
from growkit.bench.progress import to_json

__all__ = ["TOOLS", "Ledger", "Row"]

Row = dict[str, Any]

ROW_VERSION = 1
_ROOT = Path(growkit.__file__).parent

_MEASURING = ("catalogue", "measure", "streams", "worker")

# what a row depends on, beside the model: the files of growkit and the packages
TOOLS: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "growkit": (
        ("graph", "surgery", "device.py", "rng.py", *(f"bench/{one}.py" for one in _MEASURING)),
        ("torch", "torchvision", "timm"),
    ),
    "torch-pruning": (
        ("bench/catalogue.py", "bench/peer.py", "bench/worker.py"),
        ("torch", "torchvision", "timm", "torch-pruning"),
    ),
}


class Ledger:
    """The rows that one tool left for one set of models; a model measured again has several, and the last one counts.

    Attributes:
        path: the file.
        origin: hash of the source and versions that a row must have been made with to hold now.
    """

    def __init__(self, path: Path, tool: str):
        files, packages = TOOLS[tool]
        self.path = path
        self.origin = {
            "version": ROW_VERSION,
            "source": _hash(files),
            "packages": {"python": platform.python_version(), **{name: _installed(name) for name in packages}},
        }

    def rows(self) -> dict[str, Row]:
        """The last row of each model, by its entry as text; a line that an interrupt cut short is passed over."""
        found = {}
        for line in self.path.read_text().splitlines() if self.path.exists() else ():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            found[row["model"]] = row
        return found

    def holds(self, row: Row, entry: Entry) -> bool:
        """Whether a row was made by the present code, versions and definition of the model."""
        return row.get("origin") == self.origin and row.get("definition") == source_hash(entry.spec)

    def append(self, row: Row, entry: Entry) -> None:
        """Add the row of a model, signed with the present code and versions."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        signed = {"model": str(entry), **row, "definition": source_hash(entry.spec), "origin": self.origin}
        with self.path.open("a+b") as file:
            torn = file.seek(0, 2) > 0 and _last_byte(self.path) != b"\n"
            file.write((b"\n" if torn else b"") + to_json(signed).encode() + b"\n")


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1)


def _hash(files: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for name in files:
        path = _ROOT / name
        for one in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(one.relative_to(_ROOT).as_posix().encode() + b"\0" + one.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def _installed(package: str) -> str | None:
    if package == "torch":  # its own word names the build as well
        import torch

        return str(torch.__version__)
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
