"""Arguments that the public functions do not take: refused with what was given, before anything has changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from misfits import Net, X
from torch import nn
from zoo.truth import photograph

import growkit
from growkit.errors import GrowkitError

# Wrong on purpose.
# pyright: reportArgumentType=false


def site_of(model: nn.Module, x: Any) -> growkit.GrowthSite:
    return growkit.find_sites(model, x)["a"]


class Narrow(Net):
    """The modules of `Net`, with other sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 7), nn.Linear(7, 3)


NO_MODULES: dict[str, tuple[Callable[[nn.Module], Any], str]] = {
    "a name": (lambda model: "model", "got str 'model'; pass an instance"),
    "a class": (lambda model: Net, r"got the class Net; pass an instance, Net\(\)"),
    "a method": (lambda model: model.forward, "got the method forward of a Net; pass the module itself"),
    "a function": (lambda model: torch.tanh, "got builtin_function_or_method"),
    "None": (lambda model: None, "got NoneType None"),
}
FUNCTIONS: dict[str, Callable[[Any, nn.Module, Any], Any]] = {
    "find_sites": lambda wrong, model, x: growkit.find_sites(wrong, x),
    "find_places": lambda wrong, model, x: growkit.find_places(wrong, x),
    "verify_sites": lambda wrong, model, x: growkit.verify_sites(wrong, growkit.find_sites(model, x)),
    "widen": lambda wrong, model, x: growkit.widen(wrong, site_of(model, x), 2),
    "deepen": lambda wrong, model, x: growkit.deepen(wrong, "a"),
    "grow": lambda wrong, model, x: growkit.grow(wrong, (x, x)),
}


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("kind", NO_MODULES)
def test_what_is_no_module_is_refused_alike_everywhere(function: str, kind: str) -> None:
    model, x = Net(), torch.randn(*X)
    wrong, text = NO_MODULES[kind]
    with pytest.raises(growkit.UserInputError, match=f"model must be a torch.nn.Module, {text}"):
        FUNCTIONS[function](wrong(model), model, x)


WRONG_CALLS: dict[str, tuple[Callable[[nn.Module, Any], Any], str]] = {
    "a name for a site": (
        lambda model, x: growkit.widen(model, "a", 2),
        r"growkit.find_sites\(model, example\)\['a'\], got str 'a'",
    ),
    "a number for a site": (lambda model, x: growkit.widen(model, 0, 2), r"find_sites\(model, example\)\[0\], got int"),
    "None for a site": (lambda model, x: growkit.widen(model, None, 2), "find_sites.*got NoneType"),
    "names for sites": (lambda model, x: growkit.verify_sites(model, ["a"]), r"find_sites\(model, example\)\['a'\]"),
    "one name for sites": (lambda model, x: growkit.verify_sites(model, "a"), r"find_sites\(model, example\)\['a'\]"),
    "None for sites": (lambda model, x: growkit.verify_sites(model, None), "find_sites.*got NoneType"),
    "a name for a place": (
        lambda model, x: growkit.deepen(model, "a"),
        r"growkit.find_places\(model, example\)\['a'\], got str 'a'",
    ),
    "half a unit": (lambda model, x: growkit.widen(model, site_of(model, x), 0.5), "whole number.*got 0.5"),
    "no unit": (lambda model, x: growkit.widen(model, site_of(model, x), 0), "whole number.*got 0"),
    "fewer units": (lambda model, x: growkit.widen(model, site_of(model, x), -3), "whole number.*got -3"),
    "a site of another model": (
        lambda model, x: growkit.widen(nn.Linear(6, 3), site_of(model, x), 1),
        "site of another model; call find_sites",
    ),
    "a site of a model with other sizes": (
        lambda model, x: growkit.widen(model, site_of(Narrow(), x), 1),
        r"'a.weight' must have shape \(7, 6\), got \(8, 6\); call find_sites",
    ),
    "sites of a model with other sizes": (
        lambda model, x: growkit.verify_sites(model, growkit.find_sites(Narrow(), x)),
        r"'a.weight' must have shape \(7, 6\), got \(8, 6\); call find_sites",
    ),
    "an optimizer by name": (
        lambda model, x: growkit.widen(model, site_of(model, x), 2, optimizer="adam"),
        "must be a torch.optim.Optimizer that trains the model, got str",
    ),
    "an optimizer's class": (
        lambda model, x: growkit.widen(model, site_of(model, x), 2, optimizer=torch.optim.Adam),
        r"got the class Adam; pass an instance, Adam\(model.parameters\(\)\)",
    ),
    "another model's optimizer": (
        lambda model, x: growkit.widen(model, site_of(model, x), 2, optimizer=torch.optim.Adam(Net().parameters())),
        "holds none of its parameters",
    ),
    "another model's optimizer for depth": (
        lambda model, x: growkit.deepen(
            stack := nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)),
            growkit.find_places(stack, x)["0"],
            optimizer=torch.optim.Adam(model.parameters()),
        ),
        "holds none of its parameters",
    ),
    "a list for an initializer": (
        lambda model, x: growkit.widen(model, site_of(model, x), 2, initializer=["random"]),
        r"'zero' or 'random', got \['random'\]",
    ),
    "half a seed": (lambda model, x: growkit.widen(model, site_of(model, x), 2, seed=1.5), "whole number, got 1.5"),
    "None for copies": (
        lambda model, x: growkit.widen(model, site_of(model, x), 2, copies=None),
        "copies must be a list of modules, got NoneType",
    ),
    "a copy of other sizes": (
        lambda model, x: growkit.widen(model, site_of(model, x), 2, copies=[Narrow()]),
        r"copies\[0\] must be a copy of the model.*\(8, 6\), got \(7, 6\); copy the model anew",
    ),
    "a copy of other modules": (
        lambda model, x: growkit.widen(model, site_of(model, x), 2, copies=[nn.Linear(6, 3)]),
        r"copies\[0\] must be a copy of the model",
    ),
    "a verdict for a site": (
        lambda model, x: growkit.widen(model, growkit.verify_sites(model, growkit.find_sites(model, x)), 2),
        "got a Verdict; pass its .sites$",
    ),
    "a verdict for sites": (
        lambda model, x: growkit.verify_sites(model, growkit.verify_sites(model, growkit.find_sites(model, x))),
        "got a Verdict; pass its .sites$",
    ),
    "sites for a site": (lambda model, x: growkit.widen(model, growkit.find_sites(model, x), 2), r"such as sites\[0\]"),
    "a shape for an example": (
        lambda model, x: growkit.find_sites(model, (5, 6)),
        r"must hold tensors, got \(5, 6\); a shape is none: pass torch.zeros\(5, 6\)",
    ),
    "an unknown name in an example": (
        lambda model, x: growkit.find_sites(model, {"inputs": x}),
        r"must fit forward\(x\) of Net, got the keyword arguments 'inputs' \(missing a required argument: 'x'\)",
    ),
    "an empty example": (
        lambda model, x: growkit.widen(model, site_of(model, x), 2, example=x[:0]),
        "must hold samples for outputs to be compared on, got a batch of none",
    ),
    "an unknown initializer": (
        lambda model, x: growkit.widen(model, site_of(model, x), 2, initializer="best"),
        "'zero' or 'random', got 'best'",
    ),
    "an example in a list": (
        lambda model, x: growkit.widen(model, site_of(model, x), 2, example=[x]),
        "tuple of positional arguments.*got list",
    ),
    "an example that does not fit": (
        lambda model, x: growkit.widen(model, site_of(model, x), 2, example=torch.randn(4, 5)),
        "must run on the example",
    ),
}


@pytest.mark.parametrize("name", WRONG_CALLS)
def test_wrong_arguments_are_refused_with_what_was_given(name: str) -> None:
    model, x = Net(), torch.randn(*X)
    before = photograph(model)
    wrong, text = WRONG_CALLS[name]
    with pytest.raises(GrowkitError, match=text):
        wrong(model, x)
    assert photograph(model) == before


def test_a_site_found_before_other_sites_grew_is_stale() -> None:
    model, x = Net(), torch.randn(*X)
    old = site_of(model, x)
    growkit.widen(model, site_of(model, x), 2)
    with pytest.raises(growkit.GrowthRefused, match=r"'a.weight' must have shape \(8, 6\), got \(10, 6\)"):
        growkit.widen(model, old, 2)


def test_one_site_stands_for_a_list_of_one() -> None:
    model, x = Net(), torch.randn(*X)
    assert [site.name for site in growkit.verify_sites(model, site_of(model, x)).sites] == ["a"]
