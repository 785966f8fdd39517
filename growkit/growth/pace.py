"""How many growth events are still to come, for allocators that spread a budget over them."""

from __future__ import annotations

from growkit.growth.base import History, Trigger

__all__ = ["events_left"]


def events_left(told: int | None, trigger: Trigger, history: History) -> int:
    """Events from now on, this one included.

    Args:
        told: how many there are in all; None takes what the trigger plans.
        trigger: of the same policy.
        history: of the run so far.
    """
    if told is not None:
        return told - len(history.growths)
    times = trigger.opportunities(history.clock)
    assert times is not None, "the settings see to that"
    return sum(step >= history.step for step in times)
