"""How texts are read: the length of windows, of pairs."""

from __future__ import annotations

from pathlib import Path

from growkit.starting.page import Section
from growkit.starting.recognise import Found

__all__ = ["pair_section", "text_section"]

LENGTHS = ((256 * 1024, 128), (16 * 1024, 64), (2 * 1024, 32), (0, 16))  # from so many bytes on, windows so long
LONGEST_PAIR = 128


def text_section(found: Found) -> Section:
    """The settings that read a text."""
    size = found.path.stat().st_size
    section = Section()
    section.put("name", "text", "bytes; each is predicted from those before it")
    section.put("path", str(found.path), "a UTF-8 file, as seen from where growkit runs")
    section.put(
        "length", next(length for least, length in LENGTHS if size >= least), "bytes of a window: what is seen at once"
    )
    return section


def pair_section(found: Found) -> Section:
    """The settings that read pairs of texts."""
    lengths = _lengths(found.path)
    longest = max(lengths, default=1)
    long = sum(length > LONGEST_PAIR for length in lengths)
    section = Section()
    section.put("name", "text_pair", "source, tab, target: the second is predicted from the first, byte by byte")
    section.put("path", str(found.path), "a UTF-8 file, as seen from where growkit runs")
    section.put(
        "length", max(2, min(longest, LONGEST_PAIR)), f"bytes of a sequence and its end; the longest has {longest}"
    )
    left = f", as {long} of {len(lengths)} are" if long else ""
    section.put("skip_long", bool(long), f"true leaves out pairs that are longer{left}; else they are an error")
    return section


def _lengths(file: Path) -> list[int]:
    """Of the longer half of each line that is a pair; the reader names those that are none."""
    pairs = [line.split(b"\t") for line in file.read_bytes().splitlines()]
    return [max(map(len, pair)) + 1 for pair in pairs]
