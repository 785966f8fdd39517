"""What every settings class shares: frozen, strict, no unknown keys; and how plug-ins are chosen by name.

A settings class owns the defaults of its plug-in. The plug-in's constructor takes the settings object, so a default
stands in one place. Settings never import torch: a bad file is refused in a fraction of a second.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

__all__ = ["BY_NAME", "Fraction", "Seed", "Settings", "named"]


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


BY_NAME: Any = Field(discriminator="name")


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
