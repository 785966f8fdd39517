"""YAML, read strictly: the core of YAML 1.2, one document, no surprises, and the line of every key.

PyYAML alone reads `1e-3` as text, `no` as false, `12:30` as 750, `010` as 8 and of two equal keys the last. Here

- numbers are those of YAML 1.2 (`1e-3`, `.5`, `.inf`, `0x1f`, `0o17`); an integer with a leading zero is refused, since
  YAML 1.1 and 1.2 disagree about it; dates and `12:30` are text;
- only true and false are booleans, only `~`, null and nothing are null;
- equal keys in one mapping, keys that are not text, anchors, aliases, merge keys and tags are refused.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from growkit.config.problem import Path

__all__ = ["Document", "Position", "YamlError", "dump", "parse"]

Position = tuple[int, int]  # line and column, both from 1

MAX_DEPTH = 50  # deeper than any configuration; PyYAML composes by recursion
MAX_DIGITS = 1000
MAX_CHARACTERS = 1_000_000

_NULL, _BOOL, _INT, _FLOAT = (f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float"))
_LEADING_ZERO = "tag:growkit,2026:leading-zero"
_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")
_HINTS = {
    "\\t": "indent with spaces, not tabs",
    "mapping values are not allowed here": "check the indentation, and quote text that contains ': '",
    "could not find expected ':'": "write `key: value`, with a space after the colon",
}


class YamlError(ValueError):
    """The text is not strict YAML; nothing after `position` can be trusted."""

    def __init__(self, message: str, position: Position = (1, 1)):
        super().__init__(message)
        self.position = position


@dataclass(frozen=True)
class Document:
    """What a YAML text says, and where.

    Attributes:
        value: plain dicts, lists and scalars.
        keys: the position of the key of every entry, by path; of the first character of every list item.
        values: the position of every value, by path.
        problems: faults that do not stop the reading: position, path, message.
    """

    value: Any
    keys: dict[Path, Position] = field(default_factory=dict)
    values: dict[Path, Position] = field(default_factory=dict)
    problems: list[tuple[Position, Path, str]] = field(default_factory=list)


class _Loader(yaml.SafeLoader):
    """PyYAML's reader and parser with the scalars of YAML 1.2 and without anchors and tags."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.anchor:
            raise YamlError("anchors (&) and aliases (*) are not supported; write the value out", _start(event))
        if event.tag:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            raise YamlError(f"tags are not supported, got {tag}; remove it", _start(event))
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise YamlError(f"nested deeper than {MAX_DEPTH} levels; a configuration is flatter", _start(event))
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


# The order matters: a float's expression also matches integers.
for _tag, _expression, _first in (
    (_NULL, r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    (_BOOL, r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    (_INT, r"[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+|0o[0-7]+", list("-+0123456789")),
    (_LEADING_ZERO, r"[-+]?0[0-9]+", list("-+0")),
    (_FLOAT, r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
    (_FLOAT, r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", list("-+.")),
):
    _Loader.add_implicit_resolver(_tag, re.compile(f"(?:{_expression})\\Z"), _first)


def parse(text: str) -> Document:
    """Read one YAML document.

    Raises:
        YamlError: the text is not YAML, holds several documents, or uses what is not supported.
    """
    if len(text) > MAX_CHARACTERS:
        raise YamlError(f"must be at most {MAX_CHARACTERS} characters, got {len(text)}; this is no configuration")
    try:
        node = _single_node(_Loader(text))
    except yaml.reader.ReaderError as error:
        code = error.character if isinstance(error.character, int) else ord(error.character)
        fault = f"not valid YAML: the character U+{code:04X} is not allowed"
        raise YamlError(fault, _position_of(text, int(error.position))) from error
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, text) from error
    document = Document(None)
    if node is None:
        return document
    return Document(_build(node, (), document), document.keys, document.values, document.problems)


def dump(value: Any, width: int = 120) -> str:
    """`value` as YAML that `parse` reads back; lists of scalars stay on one line, unless that is wider than `width`."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=width)


def _single_node(loader: _Loader) -> yaml.Node | None:
    try:
        loader.get_event()  # the start of the stream
        if loader.check_event(yaml.StreamEndEvent):
            return None
        node = loader.compose_document()
        if not loader.check_event(yaml.StreamEndEvent):
            raise YamlError(
                "must hold one document, got several; remove the `---` between them", _start(loader.peek_event())
            )
        return node
    except YamlError:
        raise
    except ValueError as error:  # PyYAML does not check the numbers in escapes ("\\U00110000") and directives
        raise YamlError(f"not valid YAML: {error}", (loader.line + 1, loader.column + 1)) from error


def _build(node: yaml.Node, path: Path, document: Document) -> Any:
    """The value of a node; its positions and problems go into `document`."""
    document.values[path] = _start(node)
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, path, document)
    if isinstance(node, yaml.SequenceNode):
        document.keys.update({(*path, index): _start(item) for index, item in enumerate(node.value)})
        return [_build(item, (*path, index), document) for index, item in enumerate(node.value)]
    if node.tag == _LEADING_ZERO:
        remedy = f"write {node.value.lstrip('+-0') or 0}, or '{node.value}' for text"
        fault = f"an integer must not start with 0 (octal to some readers), got {node.value}; {remedy}"
        document.problems.append((_start(node), path, fault))
    return _scalar(node)


def _mapping(node: yaml.MappingNode, path: Path, document: Document) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        position, key = _start(key_node), key_node.value
        if not isinstance(key_node, yaml.ScalarNode) or not key_node.tag.endswith(":str"):
            shown = f"write '{key}': in quotes" if isinstance(key, str) and key else "give it a name"
            document.problems.append((position, path, f"a key must be text, got {_words(key)}; {shown}"))
        elif key == "<<" and key_node.style is None:
            document.problems.append((position, path, "merge keys (<<) are not supported; write the settings out"))
        elif key in result:
            first = document.keys[(*path, key)][0]
            document.problems.append((position, (*path, key), f"given twice, first on line {first}; keep one"))
        else:
            document.keys[(*path, key)] = position
            result[key] = _build(value_node, (*path, key), document)
            if value_node.start_mark.index == value_node.end_mark.index:  # nothing stands there to point at
                document.values[(*path, key)] = position
    return result


def _scalar(node: yaml.Node) -> Any:
    tag, text = node.tag, node.value
    if tag == _NULL:
        return None
    if tag == _BOOL:
        return text.lower() == "true"
    if tag == _FLOAT:
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    if tag in (_INT, _LEADING_ZERO) and len(text) > MAX_DIGITS:
        raise YamlError(f"a number must have at most {MAX_DIGITS} digits, got {len(text)}", _start(node))
    if tag == _INT:
        return int(text, 0)
    return int(text) if tag == _LEADING_ZERO else text


def _words(key: Any) -> str:
    return f"{key or 'nothing'}" if isinstance(key, str) else "a list or mapping"


def _start(item: Any) -> Position:
    return item.start_mark.line + 1, item.start_mark.column + 1


def _position_of(text: str, index: int) -> Position:
    lines = _BREAK.split(text[:index])
    return len(lines), len(lines[-1]) + 1


def _syntax_error(error: yaml.MarkedYAMLError, text: str) -> YamlError:
    mark = error.problem_mark or error.context_mark
    assert mark is not None, "PyYAML marks every syntax error"
    problem = " ".join(part for part in (error.context, error.problem) if part)
    if error.context_mark is not None and error.context_mark.line != mark.line:
        problem = f"{error.context} that starts on line {error.context_mark.line + 1}, {error.problem}"
    hint = next((f"; {hint}" for part, hint in _HINTS.items() if part in problem), "")
    lines = _BREAK.split(text)
    line = lines[mark.line][:100] if mark.line < len(lines) else ""
    shown = f"; the line reads {line!r}" if line.strip() else ""
    return YamlError(f"not valid YAML: {problem}{hint}{shown}", (mark.line + 1, mark.column + 1))


class _Dumper(yaml.SafeDumper):
    """Quotes whatever YAML 1.1 or 1.2 would not read as text; never writes anchors."""

    yaml_implicit_resolvers = {
        first: yaml.SafeDumper.yaml_implicit_resolvers.get(first, []) + _Loader.yaml_implicit_resolvers.get(first, [])
        for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *_Loader.yaml_implicit_resolvers}
    }

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_list(dumper: _Dumper, items: Any) -> yaml.Node:
    flat = not any(isinstance(item, dict | list | tuple) for item in items)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=flat)


def _represent_float(dumper: _Dumper, number: float) -> yaml.Node:
    text = repr(number) if math.isfinite(number) else ".nan" if math.isnan(number) else f"{number:+}"[0] + ".inf"
    return dumper.represent_scalar(_FLOAT, text.removeprefix("+"))


def _represent_text(dumper: _Dumper, text: str) -> yaml.Node:
    # PyYAML folds exotic line breaks away unless they are escaped.
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(list, _represent_list)
_Dumper.add_representer(tuple, _represent_list)
_Dumper.add_representer(float, _represent_float)
