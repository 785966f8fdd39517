"""Try before commit: a growth event stands only where the grown model does better than the one that did not grow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from growkit.books import Books
from growkit.config.growth import TrialSettings
from growkit.cost import TrainingCost
from growkit.errors import TrainingError
from growkit.evaluation import SampleScores, mean_and_error
from growkit.graph import Refusal
from growkit.growth.base import GrowthRecord
from growkit.growth.controller import GrowthController
from growkit.growth.event import GrowthEvent, TrialResult
from growkit.growth.limits import trial_steps
from growkit.report import Delayed

__all__ = ["Trial", "judge"]

LEAD = 8  # steps that one of the two may be ahead of the other: so many batches are kept


@dataclass
class Trial:
    """One growth event on trial: the model grows, a twin does not, and both train on for the same steps and batches.

    Attributes:
        books: of the model. They go on from where the better of the two has come to.
        controller: of its growth.
        settings: of the trial.
        told: what happened to that one meanwhile, to be passed on when the event itself has been told.
    """

    books: Books
    controller: GrowthController
    settings: TrialSettings
    told: Delayed = field(default_factory=Delayed)
    _told_of_twin: Delayed = field(default_factory=Delayed)

    def run(self, grow: Callable[[], GrowthEvent]) -> GrowthEvent:
        """The event, kept or undone.

        An exception undoes it too: the model is then as if it had never grown, wherever it has come to.

        Args:
            grow: carries the event out on the model.

        Raises:
            TrainingError: neither of the two could train on.
        """
        before, draws = TrainingCost(**self.books.cost.to_json()), self.controller.generator.get_state()
        twin, report = self.books.fork(self._told_of_twin), self.books.report
        event = grow()
        if event.undone is not None:  # there is nothing to try
            self.books.trainer.part()
            return event
        self.books.report = self.told
        try:
            result = self._compare(twin)
        except BaseException:
            self._undo(event, twin)
            self.told.pass_on(report)
            raise
        finally:
            self.books.report = report
        loser, winner = (twin, self.books) if result.pays else (self.books, twin)
        lost = _total(loser.cost) - _total(before)
        judging = winner.cost.other.get("growth", 0) - before.other.get("growth", 0)
        event = replace(event, trial=replace(result, flops=lost + judging))
        if result.pays:
            self.books.trainer.part()
        else:
            record = self._undo(event, twin)
            self.controller.generator.set_state(draws)
            event = self._noted(event, record)
        self.books.cost.add("growth", lost)
        return event

    def _compare(self, twin: Books) -> TrialResult:
        """Train both to the end of the trial, or until one cannot, and compare them on the validate split."""
        begun, both = self.books.trainer.step, {"grown": self.books, "ungrown": twin}
        failures = _train(both, begun + trial_steps(self.settings, self.books.history.clock))
        if len(failures) == len(both):
            raise failures["ungrown"]
        able = {which: books for which, books in both.items() if which not in failures}
        steps = max(books.trainer.step for books in able.values()) - begun
        if failures:
            return TrialResult(steps, failures={which: str(error) for which, error in failures.items()})
        grown, ungrown = (books.evaluate_samples("validate", "growth") for books in able.values())
        assert ungrown is not None and grown is not None, "a trial without a validate split is refused"
        return judge(steps, ungrown, grown, self.settings)

    def _undo(self, event: GrowthEvent, twin: Books) -> GrowthRecord:
        record = self.controller.take_back(self.books.history)
        self.controller.give_up(event.refused)  # by surgery, which would refuse them again
        self.books.rejoin(twin)
        self.told = self._told_of_twin
        return record

    def _noted(self, event: GrowthEvent, record: GrowthRecord) -> GrowthEvent:
        """An event that was undone, which the history remembers as tried; with the sites that it has cost too often."""
        self.books.history.tried.append(record)
        reason = f"did not pay in {self.settings.attempts} trials (growth.trial.attempts)"
        exhausted = [
            Refusal(name, size, reason, None)
            for name, (size, _) in record.widths.items()
            if self._attempts(name) == self.settings.attempts
        ]
        self.controller.give_up(exhausted)
        return replace(event, undone="it did not pay on trial", refused=(*event.refused, *exhausted))

    def _attempts(self, site: str) -> int:
        """How often a site was tried in vain since it last grew."""
        history = self.books.history
        last = max((growth.step for growth in history.growths if site in growth.widths), default=-1)
        return sum(site in attempt.widths and attempt.step > last for attempt in history.tried)


def judge(steps: int, ungrown: SampleScores, grown: SampleScores, settings: TrialSettings) -> TrialResult:
    """Compare two models on the same samples.

    The grown one pays where its loss is lower by more than margin * (loss of the other) + sigmas * (standard error of
    the difference, paired over the samples).

    Args:
        steps: that both were trained.
        ungrown: the scores of the model that did not grow.
        grown: those of the other.
        settings: of the trial.
    """
    loss, loss_grown = (mean_and_error(one.losses, one.weights)[0] for one in (ungrown, grown))
    gain, error = mean_and_error(ungrown.losses - grown.losses, ungrown.weights)
    return TrialResult(steps, loss, loss_grown, gain, error, settings.margin * abs(loss) + settings.sigmas * error)


def _train(both: Mapping[str, Books], end: int) -> dict[str, TrainingError]:
    """Train both until step `end`, in turns, as long as both can; which cannot, and why.

    Where training FLOPs end the run of one, the other is trained no further: the grown model, which comes first, costs
    no less.
    """
    failures: dict[str, TrainingError] = {}
    begun = min(books.trainer.step for books in both.values())
    for until in (*range(begun + LEAD, end, LEAD), end):
        for which, books in both.items():
            try:
                books.train(lambda step, until=until: step >= until)
            except TrainingError as error:
                failures[which] = error
            if books.trainer.finished:
                until = end = min(until, books.trainer.step)
        if failures or until == end:
            break
    return failures


def _total(cost: TrainingCost) -> int:
    return cost.training + sum(cost.other.values())
