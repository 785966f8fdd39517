"""What every settings class shares: frozen, strict, no unknown keys; and the families that plug-ins are chosen from.

A settings class owns the defaults of its plug-in. The plug-in's constructor takes the settings object, so a default
stands in one place. Settings never import torch: a bad file is refused in a fraction of a second.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

__all__ = ["Fraction", "Settings", "named"]


class Settings(BaseModel):
    """Base of all settings: immutable, strictly typed, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True)


Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


def named(union: Any, default: str | None = None) -> Any:
    """A family of plug-ins told apart by `name`.

    `when: never` stands for `when: {name: never}`; a mapping without a name means the `default` member.
    """

    def complete(value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, dict) and default is not None and "name" not in value:
            return {"name": default, **value}
        return value

    return Annotated[Annotated[union, Field(discriminator="name")], BeforeValidator(complete)]
