from __future__ import annotations

import math
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from growkit.config.yaml import YamlError, dump, parse


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("+1.5e+2", 150.0),
        ("-0.0", 0.0),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("0", 0),
        ("-12", -12),
        ("+7", 7),
        ("0x1F", 31),
        ("0o17", 15),
        ("true", True),
        ("True", True),
        ("FALSE", False),
        ("~", None),
        ("null", None),
        ("", None),
    ],
)
def test_scalars_of_the_yaml_1_2_core(text: str, value: Any) -> None:
    result = parse(f"key: {text}").value["key"]
    assert result == value and type(result) is type(value)


def test_nan_is_a_number() -> None:
    assert math.isnan(parse("[.nan]").value[0])


@pytest.mark.parametrize(
    "text",
    ["yes", "no", "on", "off", "y", "12:30", "1:30.5", "2018-01-01", "1_000", "0b11", "1e", "e3", "nan", "0xg", "="],
)
def test_what_yaml_1_1_would_read_otherwise_is_text(text: str) -> None:
    assert parse(f"key: {text}").value == {"key": text}


@pytest.mark.parametrize("text", ["'1e-3'", '"true"', "'~'", '"010"'])
def test_quoted_scalars_are_text(text: str) -> None:
    assert parse(text).value == text[1:-1]


def test_leading_zeros_are_refused_and_the_reading_goes_on() -> None:
    document = parse("seed: 010\nother: -007\nlast: 1")
    assert [(position, path) for position, path, _ in document.problems] == [((1, 7), ("seed",)), ((2, 8), ("other",))]
    assert document.problems[0][2] == (
        "an integer must not start with 0 (octal to some readers), got 010; write 10, or '010' for text"
    )
    assert document.value["last"] == 1


def test_every_key_and_value_has_its_position() -> None:
    document = parse("train:\n  lr: 0.1\n  widths: [1,\n    2]\n")
    assert document.keys[("train",)] == (1, 1)
    assert document.keys[("train", "lr")] == (2, 3)
    assert document.values[("train", "lr")] == (2, 7)
    assert document.values[("train", "widths", 1)] == (4, 5)


def test_a_duplicate_key_is_refused_with_both_lines() -> None:
    document = parse("a:\n  b: 1\n  c: 2\n  b: 3\n")
    assert document.problems == [((4, 3), ("a", "b"), "given twice, first on line 2; keep one")]
    assert document.value == {"a": {"b": 1, "c": 2}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1: a", "a key must be text, got 1; write '1': in quotes"),
        ("true: a", "a key must be text, got true; write 'true': in quotes"),
        ("? [a]\n: 1", "a key must be text, got a list or mapping; give it a name"),
        ("~: 1", "a key must be text, got ~; write '~': in quotes"),
        ("<<: {a: 1}", "merge keys (<<) are not supported; write the settings out"),
    ],
)
def test_keys_are_text(text: str, message: str) -> None:
    assert [problem for _, _, problem in parse(text).problems] == [message]


@pytest.mark.parametrize(
    ("text", "position", "message"),
    [
        ("a: &x 1", (1, 4), "anchors (&) and aliases (*) are not supported; write the value out"),
        ("a: *x", (1, 4), "anchors (&) and aliases (*) are not supported; write the value out"),
        ("a: !!int 1", (1, 4), "tags are not supported, got !!int; remove it"),
        ("a: !!python/object:os.system {}", (1, 4), "tags are not supported, got !!python/object:os.system; remove it"),
        ("a: 1\n---\nb: 2", (2, 1), "must hold one document, got several; remove the `---` between them"),
        (
            "train:\n\tepochs: 3",
            (2, 1),
            "not valid YAML: while scanning for the next token found character '\\t' that cannot start any token; "
            "indent with spaces, not tabs; the line reads '\\tepochs: 3'",
        ),
        (
            "a: b: c",
            (1, 5),
            "not valid YAML: mapping values are not allowed here; check the indentation, and quote text that contains "
            "': '; the line reads 'a: b: c'",
        ),
        (
            "a: 'x\nb: 1\n",
            (3, 1),
            "not valid YAML: while scanning a quoted scalar that starts on line 1, found unexpected end of stream",
        ),
        ("a: 1\nb: \0", (2, 4), "not valid YAML: the character U+0000 is not allowed"),
        ('a: 1\nb: "\\U00110000"', (2, 7), "not valid YAML: chr() arg not in range(0x110000)"),
        ("a: " + "1" * 5000, (1, 4), "a number must have at most 1000 digits, got 5000"),
        ("a: 1\n" * 200_001, (1, 1), "must be at most 1000000 characters, got 1000005; this is no configuration"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_not_strict_yaml_stops_the_reading(text: str, position: tuple[int, int], message: str) -> None:
    with pytest.raises(YamlError) as refused:
        parse(text)
    assert str(refused.value) == message
    assert refused.value.position == position


@pytest.mark.parametrize("text", ["[" * 100_000, "- " * 100_000, "{a: " * 100_000])
def test_deep_nesting_is_refused_at_once(text: str) -> None:
    start = time.process_time()
    with pytest.raises(YamlError, match="nested deeper than 50 levels"):
        parse(text)
    assert time.process_time() - start < 1.0


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n", "---\n...\n"])
def test_nothing_is_null(text: str) -> None:
    assert parse(text).value is None


@given(st.text(alphabet="ab:-[]{}&*!|>'\"%#,?\t\n 0.1\\U\x00é", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse(text)
    except YamlError as refused:
        line, column = refused.position
        assert line >= 1 and column >= 1


tricky = st.sampled_from(
    ["yes", "1e3", "010", "0o17", "1_000", "12:30", "~", "", "<<", "=", "2018-01-01", "- a", "a: b"]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8"))
trees = st.recursive(scalars | tricky, lambda inner: st.lists(inner) | st.dictionaries(tricky, inner), max_leaves=8)


@given(trees)
def test_what_is_dumped_is_read_back(tree: Any) -> None:
    assert parse(dump(tree)).value == tree
