"""Settings with a comment on each line that a user would change, as YAML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from growkit.config.yaml import dump

__all__ = ["Section", "flow", "page"]

LONGEST = 120
COMMENTS_AT = 44  # columns; lines that go beyond do not push the others' comments


@dataclass
class Section:
    """One of the top keys of a configuration.

    Attributes:
        values: as YAML has them.
        comments: by key.
    """

    values: dict[str, Any] = field(default_factory=dict)
    comments: dict[str, str] = field(default_factory=dict)

    def put(self, key: str, value: Any, comment: str | None = None) -> None:
        """Set a key, with a comment on what else it could be."""
        self.values[key] = value
        if comment is not None:
            self.comments[key] = comment


def page(head: list[str], values: Mapping[str, Any], comments: Mapping[tuple[str, str], str]) -> str:
    """A commented YAML text.

    Args:
        head: lines of comment at its top.
        values: the settings; each key of a section becomes one line.
        comments: by section and key; "" stands for the top.
    """
    lines = [f"# {_one_line(line)}" for line in head]
    loose = {key: value for key, value in values.items() if not isinstance(value, dict)}
    lines += _lines(loose, {key: text for (section, key), text in comments.items() if not section}, "")
    for name, section in values.items():
        if isinstance(section, dict):
            known = {key: text for (owner, key), text in comments.items() if owner == name}
            beside = f"  # {_one_line(comments['', name])}" if ("", name) in comments else ""
            lines += ["", f"{name}:{beside}", *_lines(section, known, "  ")]
    return "\n".join(lines) + "\n"


def _lines(values: Mapping[str, Any], comments: Mapping[str, str], indent: str) -> list[str]:
    settings = {key: f"{indent}{flow(key)}: {flow(value)}" for key, value in values.items()}
    lengths = [len(line) for key, line in settings.items() if key in comments]
    column = max((length for length in lengths if length < COMMENTS_AT), default=0) + 2
    lines = []
    for key, line in settings.items():
        comment = f"# {_one_line(comments[key])}" if key in comments else ""
        beside = f"{line:<{column}}" if len(line) < column else f"{line}  "
        if comment and len(beside) + len(comment) > LONGEST:
            lines += [f"{indent}{comment}", line]
        else:
            lines.append(beside + comment if comment else line)
    return lines


def flow(value: Any) -> str:
    """A value on one line.

    Example:
        >>> flow({"name": "sgd", "lr": 0.1, "widths": [4, 8], "on": True, "text": "a, b"})
        "{name: sgd, lr: 0.1, widths: [4, 8], on: true, text: 'a, b'}"
    """
    if isinstance(value, dict):
        return "{" + ", ".join(f"{flow(key)}: {flow(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(flow, value)) + "]"
    return dump([value], width=2**31).strip()[1:-1]  # in a list, so that it is quoted as a place in one line needs it


def _one_line(text: str) -> str:
    """A comment ends where its line does, whatever a column or a class is called."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
