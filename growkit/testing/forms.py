"""What new units must be, by the name of their form: see `growkit.growth.base.Extended`."""

from __future__ import annotations

import torch

from growkit.testing.cases import NUM_NEW, Units

__all__ = ["FORMS"]


def _zero_fan_in(before: Units, after: Units) -> str | None:
    fan_in, fan_out = (side[-NUM_NEW:] for side in after)
    return None if not fan_in.any() and bool(fan_out.any(1).all()) else "leave the fan-in zero and no fan-out"


def _zero_fan_out(before: Units, after: Units) -> str | None:
    fan_in, fan_out = (side[-NUM_NEW:] for side in after)
    return None if not fan_out.any() and bool(fan_in.any(1).all()) else "leave the fan-out zero and no fan-in"


def _paired(before: Units, after: Units) -> str | None:
    fan_in, fan_out = (side[-NUM_NEW:] for side in after)
    pairs = NUM_NEW // 2
    equal = torch.equal(fan_in[0 : 2 * pairs : 2], fan_in[1 : 2 * pairs : 2])
    opposite = torch.equal(fan_out[0 : 2 * pairs : 2], -fan_out[1 : 2 * pairs : 2])
    alive = bool(fan_in.any(1).all()) and bool(fan_out[: 2 * pairs].any(1).all())
    lonely = not fan_out[2 * pairs :].any()
    whole = equal and opposite and alive and lonely
    return None if whole else "give pairs equal fan-ins and opposite fan-outs, and the last of an odd number zero"


def _copied(before: Units, after: Units) -> str | None:
    (old_in, old_out), (fan_in, fan_out) = before, after
    apart = torch.cdist(fan_in, old_in)
    origins = apart[len(old_in) :].argmin(1)
    total = fan_out[: len(old_in)].index_add(0, origins, fan_out[len(old_in) :])
    equal = bool((apart[len(old_in) :].gather(1, origins[:, None]) == 0).all())
    exact = equal and torch.allclose(total, old_out, atol=1e-6)
    return None if exact else "copy fan-ins of old units and share out their fan-outs"


def _split(before: Units, after: Units) -> str | None:
    (old_in, old_out), (fan_in, fan_out) = before, after
    width = len(old_in)
    for number in range(width, len(fan_in)):
        mean = (fan_in[:width] + fan_in[number]) / 2
        same_in, same_out = (mean - old_in).norm(dim=1), (fan_out[:width] + fan_out[number] - old_out).norm(dim=1)
        moved = (fan_in[:width] - fan_in[number]).norm(dim=1) > 0
        if not bool(((same_in < 1e-5) & (same_out < 1e-5) & moved).any()):
            return "put a new unit opposite an old one, the old fan-in between them, the old fan-out shared"
    return None


def _both(before: Units, after: Units) -> str | None:
    fan_in, fan_out = (side[-NUM_NEW:].any(1) for side in after)
    return None if bool(fan_in.all()) and bool(fan_out.any()) else "leave no fan-in zero, nor all fan-outs"


FORMS = {
    "zero_fan_in": _zero_fan_in,
    "zero_fan_out": _zero_fan_out,
    "paired": _paired,
    "copied": _copied,
    "split": _split,
    "both": _both,
}
