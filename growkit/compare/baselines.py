"""Baselines of a growing arm, from its settings: the seed alone, the full network, two controls of growth."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from growkit.compare.arms import Arm
from growkit.config import Config
from growkit.config.growth import (
    FixedSettings,
    GrowthSettings,
    NeverSettings,
    PeriodicSettings,
    RandomSettings,
)
from growkit.errors import UserInputError

__all__ = ["BASELINES", "derive", "read_baselines", "uniform_growth"]

MOST_UNITS = 1_000_000_000  # of one event; the target is what holds it


def read_baselines(text: str | None) -> list[str]:
    """The baselines that `small,big` names.

    Raises:
        UserInputError: one is unknown or named twice.
    """
    names = [] if text is None else [part.strip() for part in text.split(",")]
    for name in names:
        if name not in BASELINES:
            near = get_close_matches(name, BASELINES, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserInputError(f"--baselines must be of {', '.join(BASELINES)}, got {name!r}{hint}")
    if len(set(names)) < len(names):
        raise UserInputError(f"--baselines must name each once, got {text!r}")
    return names


def derive(names: Sequence[str], arms: Sequence[Arm]) -> list[Arm]:
    """Arms for the baselines, from the first of `arms` that grows.

    Raises:
        UserInputError: none grows, or the arm allows no such baseline.
    """
    if not names:
        return []
    grower = next((arm for arm in arms if arm.grows), None)
    if grower is None:
        raise UserInputError(
            f"--baselines are derived from the first arm that grows, but growth.when is never in all of "
            f"{', '.join(arm.name for arm in arms)}"
        )
    return [
        Arm(name, BASELINES[name](grower), MEANING[name].format(grower.name), uniform=name == "uniform")
        for name in names
    ]


def _small(grower: Arm) -> Config:
    return _with_growth(grower.config, _never(grower.config))


def _refuse_depth(grower: Arm, baseline: str, modes: Sequence[str]) -> None:
    mode = grower.config.growth.mode
    if mode in modes:
        raise UserInputError(
            f"baseline {baseline} is of widths, but {grower.name} has growth.mode {mode}; give it as an arm of your "
            "own, with the settings of the model that you compare with"
        )


def _big(grower: Arm) -> Config:
    _refuse_depth(grower, "big", ("depth", "both"))
    full = grower.config.model.full()
    own = "; give it as an arm of your own, with its widths and growth.when: never"
    if full is None:
        raise UserInputError(
            f"baseline big needs a model that knows its full width (vgg, wrn, resnet, mobilenet, densenet, vit, ...), "
            f"but {grower.name} has {grower.config.model.name!r}{own}"
        )
    if full.model_dump() == grower.config.model.model_dump():
        raise UserInputError(f"baseline big would be baseline small: the seed of {grower.name} has its full width{own}")
    return _with_growth(grower.config, _never(grower.config)).model_copy(update={"model": full})


def _random(grower: Arm) -> Config:
    _refuse_depth(grower, "random", ("depth",))
    growth = grower.config.growth
    kept = {
        key: getattr(growth.initializer, key) for key in ("scale", "norm", "form") if hasattr(growth.initializer, key)
    }
    initializer = RandomSettings(**kept)
    fallback = None if growth.fallback == initializer else growth.fallback  # it would be no other one
    return _with_growth(grower.config, growth.model_copy(update={"initializer": initializer, "fallback": fallback}))


def _uniform(grower: Arm) -> Config:
    _refuse_depth(grower, "uniform", ("depth", "both"))
    return uniform_growth(grower.config, 1.0)  # its factor follows from what the grower ends with


def uniform_growth(config: Config, factor: float) -> Config:
    """Growth of all sites by one factor, at once, after the first step; seed, initializer and what follows stay."""
    growth = config.growth
    return _with_growth(
        config,
        GrowthSettings(
            when=PeriodicSettings(start=1, every=1, events=1, unit="steps"),
            how_many=FixedSettings(units=MOST_UNITS),
            initializer=growth.initializer,
            fallback=growth.fallback,
            target=factor,
            sites=growth.sites,
            tolerance=growth.tolerance,
            optimizer=growth.optimizer,
        ),
    )


def _never(config: Config) -> GrowthSettings:
    # targets, sites and budget speak of the seed, which the full network is not
    return GrowthSettings(when=NeverSettings(), target=1.0, initializer=config.growth.initializer)


def _with_growth(config: Config, growth: GrowthSettings) -> Config:
    return config.model_copy(update={"growth": growth})


BASELINES = {"small": _small, "big": _big, "random": _random, "uniform": _uniform}
MEANING = {
    "small": "the seed of {}, ungrown",
    "big": "the full network of {}, from scratch",
    "random": "{} with Gaussian units",
    "uniform": "{} with all sites grown once, after the first step, by one factor to its final parameters",
}
