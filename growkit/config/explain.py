"""From pydantic's errors to lines that teach: the rule, the value, the remedy, in the user's own words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from growkit.config.base import Settings
from growkit.config.draft import Draft
from growkit.config.problem import Path, Problem, dotted
from growkit.config.tree import ANY_CALLABLE, Spot, fields, homes, locate, member_name, settings_at

__all__ = ["explain"]

_KINDS = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping of settings",
    "model_attributes_type": "a mapping of settings",
    "invalid-json-value": "made of numbers, text, booleans, lists and mappings",
}
_BOUNDS = {
    "greater_than": ("gt", ">"),
    "greater_than_equal": ("ge", ">="),
    "less_than": ("lt", "<"),
    "less_than_equal": ("le", "<="),
}


def explain(error: ValidationError, draft: Draft) -> list[Problem]:
    """Every error of a validation as one problem each, at the place in `draft` that has to change."""
    found = [(locate(detail["loc"]), detail) for detail in error.errors(include_url=False)]
    problems = [
        _explain_one(spot, detail, draft) for spot, detail in found if spot.union is None and not _is_echo(detail)
    ]
    for details in _unions(found).values():
        problems += _explain_union(details, draft)
    return problems


def _unions(found: Sequence[tuple[Spot, ErrorDetails]]) -> dict[Path, list[tuple[Spot, ErrorDetails]]]:
    unions: dict[Path, list[tuple[Spot, ErrorDetails]]] = {}
    for spot, detail in found:
        if spot.union is not None:
            unions.setdefault(spot.union, []).append((spot, detail))
    return unions


def _explain_union(details: list[tuple[Spot, ErrorDetails]], draft: Draft) -> list[Problem]:
    """One of several kinds of value: the complaints of the kind that was meant, or the list of kinds."""
    meant = [(spot, detail) for spot, detail in details if spot.path != spot.union or detail["type"] not in _KINDS]
    if meant:
        return [_explain_one(spot, detail, draft) for spot, detail in meant]
    spot, detail = details[0]
    kinds = " or ".join(_KINDS[detail["type"]] for _, detail in details)
    return [Problem(draft.place_of(spot.path), spot.path, f"must be {kinds}, got {_shown(detail['input'])}")]


def _is_echo(detail: ErrorDetails) -> bool:
    """Whether a list is called too short only because its items, which are reported already, were dropped."""
    too_short = detail["type"] == "too_short"
    return too_short and len(detail["input"]) >= detail.get("ctx", {}).get("min_length", 0)


def _explain_one(spot: Spot, detail: ErrorDetails, draft: Draft) -> Problem:
    path, value = spot.path, detail["input"]
    match detail["type"]:
        case "extra_forbidden" | "invalid_key" if spot.owner is not None:
            return Problem(draft.place_of(path, key=True), path, _unknown_key(spot, draft))
        case "missing":
            whose = f" by {member_name(spot.owner)}" if spot.owner in spot.family else ""
            return Problem(draft.place_of(path), path, f"is required{whose}; give it a value")
        case "union_tag_invalid" | "union_tag_not_found":
            return _unknown_member(path, value, draft)
        case "model_type" | "model_attributes_type" if len(settings_at(path)) > 1:
            return _unknown_member(path, value, draft)
        case "value_error" if isinstance(value, dict):
            place = draft.overriding(path) or draft.place_of(path, key=True)
            return Problem(place, path, str(detail.get("ctx", {}).get("error")))
    return Problem(draft.place_of(path), path, _rule(detail, value))


def _rule(detail: ErrorDetails, value: Any) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    if kind in _KINDS:
        return f"must be {_KINDS[kind]}, got {_shown(value)}{_remedy(_KINDS[kind], value)}"
    if kind in _BOUNDS:
        limit, sign = _BOUNDS[kind]
        return f"must be {sign} {context[limit]:g}, got {_shown(value)}"
    if kind == "literal_error":
        return _choice(
            [text or other.lower() for text, other in re.findall(r"'([^']*)'|(\d+|True|False)", context["expected"])],
            value,
        )
    if kind == "too_short":
        least = context["min_length"]
        return f"must have at least {least} item{'s' * (least > 1)}, got {len(value)}"
    if kind == "finite_number":
        return f"must be finite, got {_shown(value)}"
    if kind == "invalid_key":
        return f"a key must be text, got {_shown(value)}; put it in quotes"
    return f"{detail['msg'].replace('Input should', 'should')}, got {_shown(value)}"


def _choice(choices: Sequence[str], value: Any) -> str:
    rule = f"must be one of {', '.join(choices)}" if len(choices) > 1 else f"must be {choices[0]}"
    return f"{rule}, got {_shown(value, plain_text=True)}{_did_you_mean(value, choices)}"


def _remedy(kind: str, value: Any) -> str:
    if kind == "an integer" and isinstance(value, float) and value.is_integer():
        return f"; write {int(value)}"
    if kind == "a list" and isinstance(value, int | float | str) and not isinstance(value, bool):
        return f"; write [{value}]"
    if kind == "a mapping of settings" and value is None:
        return "; remove the key to take the defaults"
    if kind == "true or false" and isinstance(value, str) and value.lower() in ("yes", "on", "no", "off"):
        return f"; write {str(value.lower() in ('yes', 'on')).lower()}"
    return ""


def _unknown_member(path: Path, value: Any, draft: Draft) -> Problem:
    choices = [member_name(member) for member in settings_at(path)]
    if isinstance(value, dict):
        value = value.get("name")
        path = (*path, "name") if (*path, "name") in draft else path
    return Problem(draft.place_of(path), path, _choice(choices, value))


def _unknown_key(spot: Spot, draft: Draft) -> str:
    key, owner = spot.path[-1], spot.owner
    assert owner is not None
    if not isinstance(key, str):
        return f"a setting's name must be text, got {_shown(key)}"
    own = [name for name in fields(owner) if not (spot.family and name == "name")]
    relatives = [member_name(member) for member in spot.family if key in fields(member)]
    if relatives:
        rule = f"is no setting of {member_name(owner)}, only of {', '.join(relatives)}"
        return f"{rule}; {_change_member(spot, relatives, draft)}"
    if "." in key and dotted(spot.path) in homes().get(key.rpartition(".")[2], ()):
        return f"a dot does not open a mapping in YAML; write {key.replace('.', ': {')}: ...{'}' * key.count('.')}"
    nearest = _nearest(key, own)
    elsewhere = _nearest_homes(key, spot.path[:-1])
    if not nearest and not elsewhere:
        elsewhere = _nearest_homes(_nearest(key, list(homes()), cutoff=0.65) or key, spot.path[:-1])
    whose = f" of {member_name(owner)}" if spot.family else ""
    meant = [f"'{nearest}'"] * bool(nearest) + elsewhere
    if meant:
        return f"unknown setting{whose}; did you mean {' or '.join(meant)}?"
    return f"unknown setting{whose}; it has {', '.join(own) or 'no settings'}"


def _change_member(spot: Spot, relatives: list[str], draft: Draft) -> str:
    """What to do about a setting that belongs to another member of the family."""
    assert spot.owner is not None
    family, name = dotted(spot.path[:-1]), member_name(spot.owner)
    chosen = draft.overriding((*spot.path[:-1], "name"))
    if chosen is not None and draft.place_of(spot.path) != chosen:
        return f"{family}.name={name} keeps the other settings of {family}; {family}={name} replaces them all"
    return f"remove it or choose {family}.name: {relatives[0]}"


def _nearest_homes(key: str, section: Path) -> list[str]:
    """Where a key unknown in `section` would be known: below it, else anywhere."""
    known = homes().get(key, ())
    below = [place for place in known if place.startswith(f"{dotted(section)}.")]
    return list(below or known)[:3]


def _nearest(word: str, choices: Sequence[str], cutoff: float = 0.6) -> str | None:
    """The choice most like a word; of very many, some are a little like any word, so that asks for a higher cutoff."""
    return next(iter(get_close_matches(word.lower(), choices, n=1, cutoff=cutoff)), None)


def _did_you_mean(value: Any, choices: Sequence[str]) -> str:
    nearest = (
        _nearest(value, [choice for choice in choices if choice != ANY_CALLABLE]) if isinstance(value, str) else None
    )
    return f"; did you mean '{nearest}'?" if nearest else ""


def _shown(value: Any, *, plain_text: bool = False) -> str:
    """A value as the user may have written it, with its kind where that is the point."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return _shortened(repr(value)) + ("" if plain_text else " (a string)")
    if isinstance(value, Settings):
        return f"{type(value).__name__}"
    if isinstance(value, dict):
        return f"the mapping {_shortened(repr(value))}"
    if isinstance(value, list | tuple):
        return f"the list {_shortened(repr(list(value)))}"
    return _shortened(repr(value))


def _shortened(text: str, width: int = 60) -> str:
    return text if len(text) <= width else f"{text[: width - 3]}..."
