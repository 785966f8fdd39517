"""What every settings class shares: frozen, strict, no unknown keys; and how plug-ins are chosen by name.

A settings class owns the defaults of its plug-in. The plug-in's constructor takes the settings object, so a default
stands in one place. Settings never import torch: a bad file is refused in a fraction of a second.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, model_validator

__all__ = ["BY_NAME", "BY_NAME_OR_PATH", "CALLABLE_PATH", "CallablePath", "Fraction", "Seed", "Settings", "named"]


class Settings(BaseModel):
    """Base of all settings: immutable, strictly typed, numbers finite, unknown keys refused.

    A section that is given in part keeps the rest of its owner's default: `augment: {crop: 2}` leaves CIFAR's flip on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _complete_sections(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        completed = dict(values)
        for name, info in cls.model_fields.items():
            key, default = info.alias or name, info.default
            is_section = isinstance(default, Settings) and "name" not in type(default).model_fields
            if is_section and isinstance(completed.get(key), dict):
                completed[key] = {**default.model_dump(by_alias=True, exclude_unset=True), **completed[key]}
        return completed


Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


CALLABLE_PATH = r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$"


def _is_callable_path(name: str) -> str:
    if not re.fullmatch(CALLABLE_PATH, name):
        raise ValueError(f"must be package.module:callable, got {name!r}")
    return name


CallablePath = Annotated[str, AfterValidator(_is_callable_path), Field(json_schema_extra={"pattern": CALLABLE_PATH})]


def _kind(value: Any) -> str | None:
    name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
    return "callable" if isinstance(name, str) and ":" in name else name


BY_NAME: Any = Field(discriminator="name")
BY_NAME_OR_PATH: Any = Discriminator(_kind)  # members carry tags; that of a CallablePath is "callable"


def named(default: str) -> BeforeValidator:
    """Let `when: never` stand for `when: {name: never}`, and a mapping without a name for the `default` member.

    Example:
        AnyTrigger = Annotated[NeverSettings | PeriodicSettings, BY_NAME, named("periodic")]
    """

    def complete(value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, dict) and "name" not in value:
            return {"name": default, **value}
        return value

    return BeforeValidator(complete)
