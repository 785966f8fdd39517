"""Text as bytes: a user's file, or the docstrings of Python's standard library."""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from growkit.config.data import TextSettings
from growkit.data.records import Source, Split
from growkit.errors import DataError

__all__ = ["BYTES", "docstrings", "read_text"]

BYTES = 256


def read_text(settings: TextSettings) -> Source:
    """Windows of a text, side by side, each with the same window one byte on as its targets.

    Raises:
        DataError: the file is missing, no UTF-8, or too short.
    """
    if settings.path is None:
        name, text = "text", docstrings()
    else:
        name, text = Path(settings.path).name, _read(Path(settings.path))
    length = settings.length
    count = (len(text) - 1) // length
    if count < LEAST:
        raise DataError(
            f"data {name!r}: a text must hold at least {LEAST} windows of data.length {length} bytes, got {len(text)} "
            "bytes; lower data.length"
        )
    stream = torch.from_numpy(np.frombuffer(text, dtype=np.uint8)[: count * length + 1].astype(np.int64))
    inputs, targets = stream[:-1].view(count, length), stream[1:].view(count, length)
    return Source(name, Split(inputs, targets), {}, vocabulary=BYTES)


LEAST = 10


def _read(path: Path) -> bytes:
    try:
        text = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: data.path must name a text file that can be read, got: {error.strerror}") from error
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: a text must be UTF-8, but byte {error.start} is 0x{text[error.start]:02x} "
            f"({error.reason}); `iconv -f latin1 -t utf-8` converts from Latin-1"
        ) from error
    return text


def docstrings() -> bytes:
    """The docstrings of the modules of Python's standard library by their names, up to 256 KiB.

    They differ from one version of Python to the next; the record of a run holds their hash.
    """
    found = bytearray()
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for text in _docstrings_in(ast.parse(path.read_bytes())):
            found += text.encode() + b"\n\n"
        if len(found) >= EMBEDDED:
            break
    return bytes(found[:EMBEDDED])


EMBEDDED = 256 * 1024
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def _docstrings_in(node: ast.AST) -> Iterator[str]:
    if isinstance(node, DOCUMENTED):
        if text := ast.get_docstring(node):
            yield text
        for child in node.body:
            yield from _docstrings_in(child)
