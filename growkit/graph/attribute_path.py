"""Where in a module a number stands, as text: "num_heads", "sizes[1]", "config.n_head", "cfg['model']['width']".

The text is Python as it would be written behind the module and a dot, so it reads well in a record, and Python's own
parser takes it apart again. What cannot be written behind a dot stands as a key: "['two words'][3]".
"""

from __future__ import annotations

import ast
import keyword
import unicodedata
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from growkit.errors import UserInputError

__all__ = ["has_entries", "item_at", "key_step", "like_tuple", "name_step", "steps_of"]

KEYS = (str, int, float, bytes, bool, type(None), tuple)


def name_step(name: str) -> str:
    """The step to an attribute: ".name", or "['any text']" where Python has no other way to write it."""
    plain = name.isidentifier() and not keyword.iskeyword(name) and unicodedata.normalize("NFKC", name) == name
    return f".{name}" if plain else f"[{name!r}]"


def key_step(key: Any) -> str | None:
    """The step to an entry, "[3]" or "['any text']"; None for a key that cannot be told by its text, as an object."""
    if not isinstance(key, KEYS) or (isinstance(key, tuple) and any(key_step(part) is None for part in key)):
        return None
    text = repr(key)
    try:
        return f"[{text}]" if ast.literal_eval(text) == key else None
    except (ValueError, SyntaxError):  # a class of the user's own, or inf
        return None


@lru_cache(maxsize=4096)
def steps_of(path: str) -> tuple[Any, ...]:
    """The names and keys along a path, outermost first.

    Raises:
        UserInputError: the text is no path.
    """
    steps: list[Any] = []
    try:
        node = ast.parse(f"_{'' if path.startswith(('[', '.')) else '.'}{path}", mode="eval").body
        while not isinstance(node, ast.Name):
            if isinstance(node, ast.Attribute):
                steps.append(node.attr)
                node = node.value
            elif isinstance(node, ast.Subscript):
                steps.append(ast.literal_eval(node.slice))
                node = node.value
            else:
                raise ValueError(ast.dump(node))
    except (SyntaxError, ValueError) as error:
        raise UserInputError(
            f"a path to an attribute must read like num_heads, sizes[1] or config['width'], got {path!r}"
        ) from error
    return tuple(steps[::-1])


def item_at(holder: Any, step: Any) -> Any:
    """One step: an entry of what has entries, else an attribute."""
    return holder[step] if has_entries(holder) else getattr(holder, step)


def has_entries(holder: Any) -> bool:
    """Whether steps into it are keys or positions."""
    return isinstance(holder, Mapping | list | tuple)


def like_tuple(known: tuple[Any, ...], entries: Iterable[Any]) -> tuple[Any, ...]:
    """Other entries in a tuple of the same class, named ones too."""
    make: Any = getattr(type(known), "_make", type(known))
    return make(entries)
