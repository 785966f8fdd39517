"""One event grows sites in width or places in depth, never both: which of the two it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from growkit.growth.base import History, SiteState, Why

__all__ = ["of_one_kind"]


def of_one_kind(chosen: Mapping[str, Why], states: Sequence[SiteState], history: History) -> Mapping[str, Why]:
    """The sites, or else the places, of what a selector chose.

    Where both were chosen, those stay that the selector scored highest; without scores the kind that had fewer events
    so far, sites first: the two take turns.

    Args:
        chosen: by a selector, at least one.
        states: of all that may grow.
        history: of the run so far.
    """
    is_place = {state.name: state.is_place for state in states}
    if len({is_place[name] for name in chosen}) < 2:
        return chosen
    scores = {name: why.scores["score"] for name, why in chosen.items() if "score" in why.scores}
    if len(scores) == len(chosen):
        place_grows = is_place[max(scores, key=lambda name: scores[name])]
    else:
        deepened = sum(any(is_place.get(name, False) for name in growth.widths) for growth in history.growths)
        place_grows = deepened < len(history.growths) - deepened
    return {name: why for name, why in chosen.items() if is_place[name] == place_grows}
