"""Whether a run grows now: asks the policy once a step, keeps the answer, and books what asking cost."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from growkit.errors import UserInputError
from growkit.growth.base import History, Nothing, Prospects, SiteState, Why
from growkit.growth.limits import Limits
from growkit.growth.policy import Decisions, Measure, Policy

__all__ = ["Decider"]


@dataclass
class Decider:
    """The policy of one run at work.

    Attributes:
        policy: what is asked.
        limits: no decision breaks them.
    """

    policy: Policy
    limits: Limits
    _flops: int = field(default=0, repr=False)
    _notes: list[Nothing] = field(default_factory=list, repr=False)
    _noted: set[str] = field(default_factory=set, repr=False)
    _asked: tuple[tuple[int, int], Decisions | None] | None = field(default=None, repr=False)

    def due(self, sites: Sequence[SiteState], history: History, measure: Measure | None = None) -> bool:
        """Whether to grow now. Where it is time and nothing grows, that is noted; if for good, history says so too.

        Args:
            sites: those that may grow, in the order of the graph.
            history: of the run so far.
            measure: gives the prospects; None where they cannot be measured.
        """
        if history.ended is not None:
            return False
        moment = history.step, len(history.growths)
        if self._asked is None or self._asked[0] != moment:
            answer = self.policy.consult(sites, history, self.limits, self._measurer(sites, measure))
            if isinstance(answer, Nothing):
                self._note(answer)
                history.ended = answer.reason if answer.ends else None
                answer = None
            self._asked = moment, answer
        return self._asked[1] is not None

    def decisions(self, sites: Sequence[SiteState], history: History, measure: Measure | None = None) -> Decisions:
        """What grows now: what `due` decided, else what the policy chooses whenever it is.

        Raises:
            UserInputError: nothing can grow.
        """
        asked, self._asked = self._asked, None
        if asked is not None and asked[0] == (history.step, len(history.growths)) and asked[1] is not None:
            return asked[1]
        answer = self.policy.decide(sites, history, Why("asked for"), self.limits, self._measurer(sites, measure))
        if isinstance(answer, Nothing):
            raise UserInputError(f"a growth event needs a site that can grow, but {answer.reason}")
        return answer

    def take_flops(self) -> int:
        """FLOPs spent on measuring prospects since this was last asked."""
        spent, self._flops = self._flops, 0
        return spent

    def take_notes(self) -> list[Nothing]:
        """Why nothing grew although it was time, since this was last asked; each reason is told once."""
        notes, self._notes = self._notes, []
        return notes

    def _measurer(self, sites: Sequence[SiteState], measure: Measure | None) -> Measure:
        """Measures, books what that cost, and notes the sites that were left out."""

        def measured() -> Prospects:
            assert measure is not None, "a policy that needs prospects is refused where none can be measured"
            prospects = measure()
            self._flops += round(prospects.passes * prospects.samples * prospects.flops)
            missing = [site.name for site in sites if site.room > 0 and site.name not in prospects.sites]
            if missing:
                parts, names = " and ".join(self.policy.by_prospects), ", ".join(missing)
                self._note(Nothing(f"passed over by {parts}, for their prospects could not be measured: {names}"))
            return prospects

        return measured

    def _note(self, note: Nothing) -> None:
        told = re.sub(r"[\d.,]+", "#", note.reason)  # once, whatever the numbers are the next time
        if told not in self._noted:
            self._noted.add(told)
            self._notes.append(note)
