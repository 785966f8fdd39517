"""The contract of initializers."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from growkit.config.growth import NormSettings
from growkit.errors import GrowthRefused
from growkit.growth.base import Extended, Initializer
from growkit.growth.initializers.norms import slice_norm
from growkit.rng import isolated
from growkit.surgery import Inputs, function_change, observe
from growkit.testing.cases import (
    GROWTH_CASES,
    NUM_NEW,
    GrowthCase,
    gradients_of,
    growth_case,
    narrow_case,
    new_norms,
    sides_of,
    unit_vectors,
)
from growkit.testing.forms import FORMS
from growkit.testing.policies import expect

__all__ = ["INITIALIZER_CONTRACT"]


@functools.lru_cache(maxsize=2)
def _answers(initializer: Initializer) -> dict[str, Extended]:
    """By case, what an initializer answers; it may refuse a site, or what the batch shows."""
    answers = {}
    for name in GROWTH_CASES:
        case = growth_case(name)
        if initializer.refuses(case.site) is None:
            with suppress(GrowthRefused):
                answers[name] = case.extend(initializer)
    return answers


def _served(initializer: Initializer) -> Iterator[tuple[GrowthCase, Extended]]:
    """The cases that an initializer serves, each afresh, with its answers."""
    for name, extended in _answers(initializer).items():
        yield growth_case(name), extended


def serves_or_says_why_not(initializer: Initializer) -> None:
    """More than half of the cases are served, and one unit more at width 2 too; a refusal gives a reason."""
    served = {case.name for case, _ in _served(initializer)}
    expect(2 * len(served) > len(GROWTH_CASES), f"only {sorted(served)} of {len(GROWTH_CASES)} cases are served")
    for name in GROWTH_CASES.keys() - served:
        case = growth_case(name)
        reason = initializer.refuses(case.site)
        if reason is None:
            with suppress(GrowthRefused):
                case.extend(initializer)
                raise AssertionError(f"{name}: refused once and served once")
        else:
            expect(bool(reason), f"{name}: a refusal must come with a reason")
    narrow = narrow_case()
    with narrow.grown(narrow.extend(initializer, 1), 1) as model:
        expect(bool(model(narrow.inputs).isfinite().all()), "width 2: outputs are not finite")


def keeps_the_function(initializer: Initializer) -> None:
    """Outputs stay, to 1e-5 of their size, in eval and train mode; where they are to change, with silent units."""
    for case, extended in _served(initializer):
        inputs = Inputs((case.inputs,))
        kept = extended if initializer.preserves else extended.silenced(case.site, NUM_NEW)
        before = observe(case.model, inputs)
        with case.grown(kept) as model:
            change = function_change(before, observe(model, inputs))
        expect(change.worst <= 1e-5, f"{case.name}: the outputs must stay, they changed by {change}")
        if not initializer.preserves:
            with case.grown(extended) as model:
                change = function_change(before, observe(model, inputs))
            expect(0.0 < change.worst < float("inf"), f"{case.name}: a change by design must be one, got {change}")


def is_what_its_form_says(initializer: Initializer) -> None:
    """New units are what `form` says: see `Extended`."""
    for case, extended in _served(initializer):
        check = FORMS.get(extended.form)
        expect(check is not None, f"{case.name}: form must be one of {', '.join(FORMS)}, got {extended.form!r}")
        expect(bool(extended.reason), f"{case.name}: the form must come with a reason")
        before = unit_vectors(case, dict(case.model.named_parameters()))
        with case.grown(extended) as model:
            after = unit_vectors(case, {name: p.detach().clone() for name, p in model.named_parameters()})
        assert check is not None
        wrong = check(before, after)
        expect(wrong is None, f"{case.name}: {extended.form} must {wrong}")


def gives_slices_the_norm_of_its_settings(initializer: Any) -> None:
    """A unit's new slice is as long as `settings` say: relative to the mean of the existing ones, or absolute.

    Where `settings` have a scale. One zero side: the other one has that norm. Both sides: one is twice as long for
    twice the scale.
    """
    if not isinstance(initializer.settings, NormSettings):
        return
    for norm in ("mean", "fixed"):
        single, double = (
            {case.name: (case, extended) for case, extended in _served(replace(initializer, settings=settings))}
            for scale in (0.37, 0.74)
            for settings in [initializer.settings.model_copy(update={"norm": norm, "scale": scale})]
        )
        for case, extended in single.values():
            norms, longer = sides_of(case, extended), sides_of(case, double[case.name][1])
            ratios = [after / before for before, after in zip(norms, longer, strict=True) if bool((before > 0).all())]
            expect(
                any(torch.allclose(ratio, torch.full_like(ratio, 2.0), rtol=1e-4) for ratio in ratios),
                f"{case.name}: twice the scale must give slices of twice the norm on a side, got {ratios}",
            )
            chain, made = case.site.chain, extended.form == "zero_fan_out"
            if chain is None or extended.form not in ("zero_fan_in", "zero_fan_out"):
                continue
            weight = case.model.get_parameter(chain.producer if made else chain.consumer).detach()
            settings = initializer.settings.model_copy(update={"norm": norm, "scale": 0.37})
            wanted = torch.full((NUM_NEW,), slice_norm(weight, 0 if made else 1, settings))
            got = norms[0] if made else norms[1]
            expect(
                torch.allclose(got, wanted, rtol=1e-4),
                f"{case.name}: new slices must have norm {wanted[0]:.4g}, got {got}",
            )


def is_deterministic_under_its_generator(initializer: Initializer) -> None:
    """The same generator state gives the same units, and torch's global stream is neither read nor moved."""
    before = torch.get_rng_state()
    _answers.cache_clear()
    first = _answers(initializer)
    expect(torch.equal(before, torch.get_rng_state()), "global random numbers were drawn")
    _answers.cache_clear()
    with isolated(99):
        second = _answers(initializer)
    expect(first.keys() == second.keys(), "other cases were served the second time")
    for name, extended in first.items():
        expect(_same(extended.values, second[name].values), f"{name}: other slices the second time")
        expect(_same(extended.rewrites, second[name].rewrites), f"{name}: other rewrites the second time")


def _same(one: Mapping[Any, Tensor], other: Mapping[Any, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def lets_every_unit_learn(initializer: Initializer) -> None:
    """A side of every new unit that may be zero has a finite gradient that is not zero; of other units, either side."""
    for case, extended in _served(initializer):
        with case.grown(extended) as model:
            fan_in, fan_out = new_norms(case, gradients_of(case, model))
        learning = {"zero_fan_in": fan_in, "zero_fan_out": fan_out}.get(extended.form, torch.maximum(fan_in, fan_out))
        expect(bool(learning.isfinite().all()), f"{case.name}: gradients must be finite, got {learning}")
        expect(bool((learning > 0).all()), f"{case.name}: every new unit must learn, gradient norms are {learning}")


def wakes_every_unit_with_the_first_step(initializer: Initializer) -> None:
    """After one step of SGD every new unit is made and read, is no other unit's twin, and goes on learning."""
    for case, extended in _served(initializer):
        with case.grown(extended) as model:
            gradients = gradients_of(case, model)
            parameters = dict(model.named_parameters())
            kept = {name: parameter.detach().clone() for name, parameter in parameters.items()}
            for name, gradient in gradients.items():
                parameters[name].data.sub_(gradient, alpha=0.1)
            fan_in, fan_out = unit_vectors(case, {name: p.detach().clone() for name, p in parameters.items()})
            again = torch.maximum(*new_norms(case, gradients_of(case, model)))
            for name, parameter in parameters.items():
                parameter.data.copy_(kept[name])
        for side, vectors in (("fan-in", fan_in), ("fan-out", fan_out)):
            silent = (vectors[-NUM_NEW:] == 0).all(1)
            expect(not bool(silent.any()), f"{case.name}: after a step the {side} of a new unit is still zero")
        apart = torch.cdist(whole := torch.cat([fan_in, fan_out], 1), whole)[-NUM_NEW:]
        apart[torch.arange(NUM_NEW), torch.arange(len(whole))[-NUM_NEW:]] = float("inf")
        expect(bool((apart > 1e-6).all()), f"{case.name}: after a step a new unit is the twin of another one")
        expect(bool((again > 0).all()), f"{case.name}: after a step the gradients of new units are {again}")


def leaves_the_model_alone(initializer: Initializer) -> None:
    """Measuring and extending change nothing: weights, buffers, gradients, modes, widths."""
    for name in GROWTH_CASES:
        case = growth_case(name)
        if initializer.refuses(case.site) is not None:
            continue
        case.model.train(False)
        F.cross_entropy(case.model(case.inputs), case.targets).backward()
        before = {n: t.clone() for n, t in case.model.state_dict().items()}
        gradients = {n: p.grad.clone() for n, p in case.model.named_parameters() if p.grad is not None}
        width = case.site.width
        with suppress(GrowthRefused):
            case.extend(initializer)
        after = case.model.state_dict()
        expect(all(torch.equal(before[n], after[n]) for n in before), f"{case.name}: weights or buffers changed")
        kept = {n: p.grad for n, p in case.model.named_parameters() if p.grad is not None}
        same = gradients.keys() == kept.keys() and all(torch.equal(gradients[n], kept[n]) for n in kept)
        expect(same, f"{case.name}: gradients changed")
        expect(not any(m.training for m in case.model.modules()), f"{case.name}: modes changed")
        expect(case.site.width == width, f"{case.name}: the site has another width")


INITIALIZER_CONTRACT = (
    serves_or_says_why_not,
    keeps_the_function,
    is_what_its_form_says,
    gives_slices_the_norm_of_its_settings,
    is_deterministic_under_its_generator,
    lets_every_unit_learn,
    wakes_every_unit_with_the_first_step,
    leaves_the_model_alone,
)
"""For `growkit.growth.base.Initializer`, a frozen dataclass with a field `settings`; refused sites are skipped."""
