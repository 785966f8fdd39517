from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, get_args

import pytest
import torch

from growkit.config.growth import (
    AnyInitializer,
    FireflySettings,
    GradMaxOptSettings,
    GradMaxSettings,
    RandomSettings,
)
from growkit.errors import GrowthRefused
from growkit.growth.base import Extended, Initializer
from growkit.growth.initializers import (
    Firefly,
    GaussianRandom,
    GradMax,
    GradMaxInverse,
    GradMaxOpt,
    Net2Wider,
    PositiveRandom,
    Splitting,
    Tiny,
    VarianceTransfer,
    ZeroFanOut,
    build_initializer,
)
from growkit.growth.initializers.norms import scaled, slice_norm
from growkit.testing import INITIALIZER_CONTRACT, growth_case

INITIALIZERS = {
    "gradmax": GradMax(),
    "gradmax, zero fan-out": GradMax(GradMaxSettings(form="zero_fan_out")),
    "gradmax_inverse": GradMaxInverse(),
    "gradmax_opt": GradMaxOpt(GradMaxOptSettings(steps=5)),
    "gradmax_opt, zero fan-out": GradMaxOpt(GradMaxOptSettings(steps=5, form="zero_fan_out")),
    "random": GaussianRandom(),
    "random, zero fan-out": GaussianRandom(RandomSettings(form="zero_fan_out")),
    "random_positive": PositiveRandom(),
    "zero": ZeroFanOut(),
    "variance_transfer": VarianceTransfer(),
    "net2wider": Net2Wider(),
    "firefly": Firefly(FireflySettings(steps=5)),
    "splitting": Splitting(),
    "tiny": Tiny(),
}


@pytest.mark.parametrize("check", INITIALIZER_CONTRACT, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", INITIALIZERS)
def test_contract(name: str, check: Callable[[Any], None]) -> None:
    check(INITIALIZERS[name])


@pytest.mark.parametrize("settings", get_args(get_args(AnyInitializer)[0]), ids=lambda s: s().name)
def test_initializers_are_built_by_name(settings: Any) -> None:
    settings = settings()
    built = build_initializer(settings)
    assert built.name == settings.name and getattr(built, "settings") is settings  # noqa: B009


# the contract can be broken


@dataclass(frozen=True)
class Broken(Initializer):
    """Gaussian units, and one thing wrong."""

    how: Callable[[Any, Extended], Extended]
    settings: RandomSettings = RandomSettings(form="zero_fan_out")
    name = "broken"

    def refuses(self, site: Any) -> str | None:
        return self.how(None, None) if self.how is never else None  # type: ignore[arg-type,return-value]

    def extend(self, site: Any, num_new: int, measurement: Any, generator: torch.Generator) -> Extended:
        settings = RandomSettings(form="zero_fan_out") if self.how is deaf else self.settings
        return self.how(measurement, GaussianRandom(settings).extend(site, num_new, measurement, generator))


def never(measurement: Any, extended: Extended) -> Any:
    return "never"


def moved(values: Callable[[torch.Tensor], torch.Tensor], **more: Any) -> Callable[[Any, Extended], Extended]:
    return lambda measurement, extended: replace(
        extended, values={key: values(slices) for key, slices in extended.values.items()}, **more
    )


def loud(measurement: Any, extended: Extended) -> Extended:
    return replace(extended, rewrites={name: measurement.tensor(name) * 2 for name, _ in extended.values})


def deaf(measurement: Any, extended: Extended) -> Extended:
    return extended


def clumsy(measurement: Any, extended: Extended) -> Extended:
    measurement.model.train()
    return extended


BROKEN = {
    "serves_or_says_why_not": never,
    "keeps_the_function": loud,
    "is_what_its_form_says": moved(lambda slices: slices, form="both"),
    "gives_slices_the_norm_of_its_settings": deaf,
    "is_deterministic_under_its_generator": moved(lambda slices: slices + torch.rand(())),
    "lets_every_unit_learn": moved(torch.zeros_like),
    "wakes_every_unit_with_the_first_step": moved(lambda slices: slices[:1].expand_as(slices).contiguous()),
    "leaves_the_model_alone": clumsy,
}


@pytest.mark.parametrize("check", INITIALIZER_CONTRACT, ids=lambda check: check.__name__)
def test_every_check_of_the_contract_can_fail(check: Callable[[Any], None]) -> None:
    with pytest.raises(AssertionError):
        check(Broken(BROKEN[check.__name__]))


@pytest.mark.parametrize("form", ["zero_fan_in", "paired", "copied", "split", "none"])
def test_every_form_is_checked(form: str) -> None:
    (check,) = [one for one in INITIALIZER_CONTRACT if one.__name__ == "is_what_its_form_says"]
    with pytest.raises(AssertionError, match=f"{form}|must be one of"):
        check(Broken(moved(lambda slices: slices, form=form)))


# which side is zero

FORMS = {
    "tanh": ("zero_fan_in", r"f\(0\) = 0 and f'\(0\) != 0"),
    "conv": ("zero_fan_in", r"f\(0\) = 0 and f'\(0\) != 0"),
    "dropout": ("zero_fan_in", r"f\(0\) = 0 and f'\(0\) != 0"),
    "torch's relu": ("zero_fan_out", "slope 0 at 0"),
    "relu in place": ("zero_fan_out", "slope 0 at 0"),
    "sigmoid": ("zero_fan_out", r"f\(0\) = 0.5"),
    "conv, batch norm": ("zero_fan_out", "slope 0 at 0"),
}


@pytest.mark.parametrize("initializer", [GradMax(), GaussianRandom()], ids=["gradmax", "random"])
@pytest.mark.parametrize("name", FORMS)
def test_auto_takes_the_form_that_works_and_says_why(name: str, initializer: Any) -> None:
    form, reason = FORMS[name]
    extended = growth_case(name).extend(initializer)
    assert extended.form == form
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(extended.reason)


@pytest.mark.parametrize("name", ["torch's relu", "relu in place", "sigmoid"])
@pytest.mark.parametrize("settings", [GradMaxSettings, RandomSettings])
def test_zero_fan_in_by_name_is_refused_where_it_cannot_work(name: str, settings: Any) -> None:
    initializer = build_initializer(settings(form="zero_fan_in"))
    with pytest.raises(GrowthRefused, match=r"form zero_fan_in needs .* at 0 .*; use form: auto or zero_fan_out"):
        growth_case(name).extend(initializer)


def test_random_takes_zero_fan_out_off_the_chain() -> None:
    extended = growth_case("residual stream").extend(GaussianRandom())
    assert extended.form == "zero_fan_out" and "more than one layer" in extended.reason


# norms


def test_mean_norm_is_relative_to_the_existing_slices() -> None:
    weight = torch.tensor([[3.0, 0.0], [4.0, 0.0]])  # columns of norm 5 and 0, rows of norm 3 and 4
    assert slice_norm(weight, 1, RandomSettings(scale=0.5)) == pytest.approx(0.5 * 2.5)
    assert slice_norm(weight, 0, RandomSettings(scale=2.0)) == pytest.approx(2.0 * 3.5)
    assert slice_norm(weight, 0, RandomSettings(scale=0.5, norm="fixed")) == 0.5


@pytest.mark.parametrize("dim", [0, 1])
def test_a_zero_layer_stands_in_with_kaimings_norm(dim: int) -> None:
    shape = (300, 200, 3, 3)
    wanted = torch.nn.init.kaiming_normal_(torch.empty(shape)).transpose(0, dim).flatten(1).norm(dim=1).mean()
    assert slice_norm(torch.zeros(shape), dim, RandomSettings(scale=1.0)) == pytest.approx(float(wanted), rel=0.01)


def test_scaled_slices_have_the_norm_and_keep_their_direction() -> None:
    slices = torch.randn(4, 3, 2, 2)
    result = scaled(slices, 1, 0.7)
    assert torch.allclose(result.transpose(0, 1).flatten(1).norm(dim=1), torch.full((3,), 0.7))
    ratio = result / slices
    assert torch.allclose(ratio, ratio[:1, :, :1, :1].expand_as(ratio))
