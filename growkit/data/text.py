"""Text as bytes: a user's file, or the docstrings of Python's standard library."""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from growkit.config.data import TextPairSettings, TextSettings
from growkit.data.records import IGNORED, Source, Split
from growkit.errors import DataError

__all__ = [
    "BEGIN",
    "BYTES",
    "END",
    "PADDING",
    "check_utf8",
    "docstrings",
    "documented_names",
    "read_pairs",
    "read_text",
]

BYTES = 256
BEGIN, END, PADDING = 256, 257, 258  # tokens beside the bytes, for pairs


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


def read_pairs(settings: TextPairSettings) -> Source:
    """Pairs of texts: inputs [N, 2, T], source and the target one token on, and the target's tokens [N, T].

    Raises:
        DataError: the file is missing, no UTF-8, or a line is no pair or too long.
    """
    text = documented_names() if settings.path is None else _read(Path(settings.path))
    path, length = Path(settings.path or "text_pair"), settings.length
    pairs, skipped = [], 0
    for number, line in enumerate(text.splitlines(), 1):
        parts = line.split(b"\t")
        if len(parts) != 2 or not all(parts):
            empty = " and an empty part" if not all(parts) else ""
            raise DataError(f"{path}:{number}: a line must be source, tab, target, got {len(parts) - 1} tabs{empty}")
        longest = max(map(len, parts)) + 1
        if longest <= length:
            pairs.append(parts)
        elif settings.skip_long or settings.path is None:
            skipped += 1
        else:
            raise DataError(
                f"{path}:{number}: a sequence must have at most data.length {length} tokens, got {longest} (bytes and "
                "an end); raise data.length, or set data.skip_long: true"
            )
    if len(pairs) < LEAST:
        raise DataError(
            f"{path}: there must be at least {LEAST} pairs of at most {length} tokens, got {len(pairs)} and {skipped} "
            "longer ones"
        )
    sources = torch.tensor([_padded([*source, END], length, PADDING) for source, _ in pairs])
    so_far = torch.tensor([_padded([BEGIN, *target], length, PADDING) for _, target in pairs])
    targets = torch.tensor([_padded([*target, END], length, IGNORED) for _, target in pairs])
    notes = (f"{path}: {skipped} pairs longer than data.length {length} were left out",) if skipped else ()
    return Source(path.name, Split(torch.stack([sources, so_far], 1), targets), {}, PADDING + 1, notes)


def _padded(tokens: list[int], length: int, padding: int) -> list[int]:
    return tokens + [padding] * (length - len(tokens))


LEAST = 10


def _read(path: Path) -> bytes:
    try:
        text = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: data.path must name a text file that can be read, got: {error.strerror}") from error
    check_utf8(path, text, "a text")
    return text


def check_utf8(path: Path, content: bytes, noun: str) -> None:
    """Refuse bytes of another encoding.

    Raises:
        DataError: naming the line, and how to convert the file.
    """
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        theirs, name = ("utf-16", "UTF-16") if utf16 else ("latin1", "Latin-1")
        raise DataError(
            f"{path}:{line}: {noun} must be UTF-8, but byte {error.start} is 0x{content[error.start]:02x} "
            f"({error.reason}); `iconv -f {theirs} -t utf-8` converts from {name}"
        ) from error


def docstrings() -> bytes:
    """The docstrings of the modules of Python's standard library by their names, up to 256 KiB.

    They differ from one version of Python to the next; the record of a run holds their hash.
    """
    found = bytearray()
    for _, text in _documented():
        found += text.encode() + b"\n\n"
        if len(found) >= EMBEDDED:
            break
    return bytes(found[:EMBEDDED])


def documented_names() -> bytes:
    """Names of the same modules with the first line of their docstrings, a tab between: the 2 000 shortest pairs."""
    lines = {f"{name}\t{' '.join(text.splitlines()[0].split())}" for name, text in islice(_documented(), 4000)}
    return "\n".join(sorted(sorted(lines), key=len)[:2000]).encode()


EMBEDDED = 256 * 1024
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def _documented() -> Iterator[tuple[str, str]]:
    """Dotted names and docstrings of what Python's standard library documents, module by module."""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        yield from _documented_in(ast.parse(path.read_bytes()), path.stem)


def _documented_in(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, DOCUMENTED):
        if text := ast.get_docstring(node):
            yield name, text
        for child in node.body:
            yield from _documented_in(child, f"{name}.{getattr(child, 'name', '')}")
