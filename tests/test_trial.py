"""Events on trial: undone, they leave a run as if it had never grown; kept, as if there were no trials."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from depth_growth_cases import Tower
from scipy.stats import ttest_rel
from torch import Tensor, nn

import growkit
from growkit import pipeline, trial
from growkit.assembly import Assembly, assemble
from growkit.books import Books
from growkit.config import config_from_overrides
from growkit.config.data import AugmentSettings, SplitSettings
from growkit.config.growth import TrialSettings
from growkit.cost import LATENCY_CALLS
from growkit.data import Data, data_from_user
from growkit.errors import TrainingError, UserInputError
from growkit.evaluation import SampleScores, mean_and_error
from growkit.growth.event import TrialResult
from growkit.metrics import Evaluation
from growkit.pipeline import RunResult, run
from growkit.rng import global_state
from growkit.train import Trainer
from growkit.trial import judge

EPOCH = 8  # steps
STEPS = 6  # of a trial
WIDER = {"how_many": "fixed", "initializer": "random"}
HOPELESS = {"steps": STEPS, "margin": 1000.0}
SPLIT = SplitSettings.model_validate({"test": 0.1, "validate": 0.2, "diagnose": 0.0, "accept": 0.0})
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"name": "sgd", "lr": 0.05},
    "adam": {"name": "adam", "lr": 0.01},
    "adabound": {"name": "adabound", "lr": 0.01},
    "asam over amsbound": {"name": "asam", "rho": 0.1, "base": {"name": "amsbound", "lr": 0.01}},
    "sam of parts": {"name": "sam", "m": 8, "interval": 2, "schedule": "linear", "base": {"lr": 0.05}},
}


class Net(nn.Module):
    """Batch norm, dropout, and a number that training moves outside of the state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.drop, self.head = nn.Dropout(0.3), nn.Linear(4, 3)
        self.level = 0.0

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu()
        if self.training and not torch.compiler.is_compiling():
            self.level = 0.9 * self.level + float(x.detach().mean())
        return self.head(self.drop(x.mean((2, 3))))


class Deep(Tower):
    """Two residual blocks, for images, with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.drop = nn.Linear(36, 4), nn.Dropout(0.3)
        self.level = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.drop(x.flatten(1)))


@pytest.fixture(scope="module")
def data() -> Data:
    """115 training images in 7 batches of 16 and one of 3, augmented."""
    source = torch.Generator().manual_seed(0)
    targets = torch.arange(160) % 3
    images = torch.randint(0, 150, (160, 1, 6, 6), generator=source) + 35 * targets[:, None, None, None]
    return data_from_user(
        (images.to(torch.uint8), targets), split=SPLIT, augment=AugmentSettings(crop=1, flip=True, cutout=2)
    )


@dataclass
class Finished:
    """A run that is over, and its parts as they were left."""

    outcome: RunResult
    parts: Assembly

    def everything(self) -> dict[str, Any]:
        """All that goes on from here, and what was noted but for seconds."""
        trainer, streams, ground = self.parts.trainer, self.parts.streams, self.parts.controller.ground
        part_rates = self.parts.aftermath.part_rates
        with streams.lent("dropout"):
            dropout = global_state()
        return {
            "values": [*self.outcome.model.parameters(), *self.outcome.model.buffers()],
            "level": self.outcome.model.level,
            "optimizer": trainer.optimizer.state_dict(),
            "streams": [streams.generator(name).get_state() for name in ("order", "augmentation", "growth")],
            "dropout": dropout,
            "trainer": (trainer.step, trainer.epoch, trainer.learning_rate, trainer.flops_per_sample),
            "part rates": [] if part_rates is None else [part_rates.of(one) for one in self.outcome.model.parameters()],
            "epochs": [replace(record, cpu_seconds=0.0, wall_seconds=0.0) for record in self.outcome.history.epochs],
            "growths": self.outcome.history.growths,
            "train_flops": self.outcome.result["train_flops"],
            "edits": [edit.to_json() for edit in self.parts.controller.edits],
            "widths": self.parts.widths,
            "depths": [self.parts.depths, ground.depths.places, ground.depths.refusals],
            "costs": [ground.costs.params({}), ground.costs.flops({}), ground.costs.blocks],
            "tracked": [site.name for site in self.parts.controller.tracked],
        }


@pytest.fixture
def finish(data: Data, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Finished]:
    """Runs the net to the end, with settings of growth."""

    def finished(
        root: Path | None = None,
        memory: str = "sgd",
        net: type[nn.Module] = Net,
        length: dict[str, Any] | None = None,
        **growth: Any,
    ) -> Finished:
        kept: list[Assembly] = []

        def assembled(*args: Any, **kwargs: Any) -> Assembly:
            kept.append(assemble(*args, **kwargs))
            return kept[-1]

        monkeypatch.setattr(pipeline, "assemble", assembled)
        torch.manual_seed(3)
        settings = {
            "train": {**(length or {"epochs": 4}), "batch_size": 16, "optimizer": OPTIMIZERS[memory]},
            "growth": {"when": {"start": 1, "every": 1}, **({} if net is Deep else WIDER), **growth},
            "run": {"root": str(root), "tensorboard": False},
            "data": {"name": "memory"},
            "model": {"name": "live", "type": net.__name__},
        }
        config = config_from_overrides(settings)
        return Finished(run(config, model=net(), data=data, observers=(), writes=root is not None), kept[0])

    return finished


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, Tensor) else a == b


def differing(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    return [key for key in a if not same(a[key], b[key])]


# --- bit for bit


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_undone_events_leave_no_trace_but_their_cost(finish: Callable[..., Finished], optimizer: str) -> None:
    tried, never = finish(memory=optimizer, trial=HOPELESS), finish(memory=optimizer, when="never")
    assert [event.undone for event in tried.outcome.events] == ["it did not pay on trial"] * 3
    assert differing(tried.everything(), never.everything()) == []


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_kept_events_are_those_of_a_run_without_trials(
    finish: Callable[..., Finished], optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "judge", lambda steps, *scores: TrialResult(steps, 1.0, 0.5, 0.5, 0.1, 0.1))
    tried, plain = finish(memory=optimizer, trial={"steps": STEPS}), finish(memory=optimizer)
    assert [event.undone for event in tried.outcome.events] == [None] * 3
    assert differing(tried.everything(), plain.everything()) == []


def test_the_comparison_would_see_another_run(finish: Callable[..., Finished]) -> None:
    differ = differing(finish().everything(), finish(when="never").everything())
    assert {"values", "level", "optimizer", "streams", "dropout", "growths", "train_flops"} <= {*differ}


def test_a_trial_longer_than_the_time_between_events_delays_the_next(
    finish: Callable[..., Finished], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The events after epochs 2 and 4 come up while those after 1 and 3 are on trial."""
    monkeypatch.setattr(trial, "judge", lambda steps, *scores: TrialResult(steps, 1.0, 0.5, 0.5, 0.1, 0.1))
    long = finish(trial={"steps": 10})
    assert [event.step for event in long.outcome.events] == [EPOCH]  # after 3 epochs 10 steps are no longer left


def test_growth_due_when_a_trial_ends_comes_at_once(finish: Callable[..., Finished]) -> None:
    whole = finish(trial={"margin": 1000.0})  # an epoch, as long as from one event to the next
    assert [event.step for event in whole.outcome.events] == [EPOCH, 2 * EPOCH, 3 * EPOCH]
    ends = [(stage.first_step, stage.last_step) for stage in whole.outcome.stages]
    assert ends == [(number * EPOCH, (number + 1) * EPOCH) for number in range(4)]


def test_nothing_is_trained_twice(finish: Callable[..., Finished], monkeypatch: pytest.MonkeyPatch) -> None:
    steps, one_step = [0], Trainer._one_step

    def counted(trainer: Trainer, *batch: Tensor) -> None:
        steps[0] += 1
        one_step(trainer, *batch)

    monkeypatch.setattr(Trainer, "_one_step", counted)
    tried = finish(trial=HOPELESS)
    assert steps[0] == tried.parts.trainer.total_steps + 3 * STEPS


def test_a_trial_costs_the_training_of_the_loser_and_the_judging_of_both(finish: Callable[..., Finished]) -> None:
    tried, never = finish(trial=HOPELESS), finish(when="never")
    events, samples = tried.outcome.events, len(tried.parts.data.split("validate"))
    batch = tried.parts.trainer.settings.batch_size
    for event in events:
        assert event.trial is not None
        training = 3 * event.flops_after * STEPS * batch  # its 6 steps end before the smaller last batch of the epoch
        assert event.trial.flops == training + samples * (event.flops_before + event.flops_after)
    others = tried.outcome.result["other_flops"]
    assert others["growth"] == sum(event.flops_spent + event.trial.flops for event in events if event.trial)
    more_stages = len(events) * tried.outcome.result["flops"] * (samples + LATENCY_CALLS)
    assert others["evaluation"] == never.outcome.result["other_flops"]["evaluation"] + more_stages


# --- beside all else that events change

AFTER = {"state": "reset_all", "rewarm_steps": 12, "part_rates": "norm_ratio"}
BOTH = {"mode": "both", "sites": ["blocks.*"], "target": 2.0, "initializer": "random"}
CASES: dict[str, dict[str, Any]] = {
    "optimizer": {"optimizer": AFTER},
    "train.flops": {"length": {"flops": 10_000_000}},
    "depth": {"net": Deep, "mode": "depth", "depth": {"target": 3.0}},
    "both": {"net": Deep, **BOTH},
}


def judging(monkeypatch: pytest.MonkeyPatch, verdicts: Sequence[bool]) -> None:
    """The trials end as they are told to."""
    needed = iter([0.1 if verdict else 0.9 for verdict in verdicts])
    monkeypatch.setattr(trial, "judge", lambda steps, *scores: TrialResult(steps, 1.0, 0.5, 0.5, 0.1, next(needed)))


@pytest.fixture
def finish_case(finish: Callable[..., Finished]) -> Callable[..., Finished]:
    """Runs one of the cases, with Adam or with what is asked for."""

    def finished(case: str, optimizer: str = "adam", **growth: Any) -> Finished:
        return finish(**{"memory": optimizer, "when": {"start": 1, "every": 1, "events": 3}, **CASES[case], **growth})

    return finished


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("optimizer", ["adam", "asam over amsbound"])
def test_one_event_kept_and_those_after_it_undone_are_one_event(
    finish_case: Callable[..., Finished], monkeypatch: pytest.MonkeyPatch, case: str, optimizer: str
) -> None:
    judging(monkeypatch, [True, False, False])
    tried = finish_case(case, optimizer, trial={"steps": STEPS})
    plain = finish_case(case, optimizer, when={"start": 1, "every": 1, "events": 1})
    assert [event.undone is None for event in tried.outcome.events] == [True, False, False]
    assert differing(tried.everything(), plain.everything()) == []


@pytest.mark.parametrize("case", CASES)
def test_with_it_undone_events_leave_no_trace(finish_case: Callable[..., Finished], case: str) -> None:
    tried, later = finish_case(case, trial=HOPELESS), finish_case(case, when={"start": 99, "every": 1})
    assert [event.undone is None for event in tried.outcome.events] == [False] * 3
    assert tried.outcome.history.clock == later.outcome.history.clock
    assert differing(tried.everything(), later.everything()) == []


@pytest.mark.parametrize("case", CASES)
def test_with_it_kept_events_are_those_of_a_run_without_trials(
    finish_case: Callable[..., Finished], monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    judging(monkeypatch, [True] * 3)
    tried, plain = finish_case(case, trial={"steps": STEPS}), finish_case(case)
    assert [event.step for event in tried.outcome.events] == [event.step for event in plain.outcome.events]
    assert differing(tried.everything(), plain.everything()) == []


@pytest.mark.parametrize("pays", [False, True])
def test_flops_that_end_the_run_of_the_grown_model_end_the_trial(
    finish: Callable[..., Finished], monkeypatch: pytest.MonkeyPatch, pays: bool
) -> None:
    epoch = finish(length={"epochs": 1}, when="never").outcome.result
    batch = 3 * 16 * epoch["flops"]
    length = {"flops": epoch["train_flops"] + 7 * batch}  # 7 steps more, if nothing grows
    judging(monkeypatch, [pays])
    tried = finish(length=length, how_many={"name": "fixed", "units": 12}, trial={"steps": STEPS})
    (event,) = tried.outcome.events
    steps = math.ceil(7 * event.flops_before / event.flops_after)
    assert event.trial is not None and event.trial.steps == steps < STEPS
    if pays:
        assert tried.parts.trainer.step == EPOCH + steps
    else:
        assert differing(tried.everything(), finish(length=length, when="never").everything()) == []


# --- judging


def scores(losses: Tensor) -> SampleScores:
    return SampleScores(Evaluation(float(losses.mean()), None, len(losses)), losses, None, torch.ones_like(losses))


def test_the_difference_is_tested_in_pairs() -> None:
    source = torch.Generator().manual_seed(0)
    ungrown = torch.rand(50, generator=source, dtype=torch.float64)
    grown = ungrown - 0.01 + 0.02 * torch.randn(50, generator=source, dtype=torch.float64)
    result, truth = judge(5, scores(ungrown), scores(grown), TrialSettings()), ttest_rel(ungrown, grown)
    assert result.gain is not None and result.standard_error is not None
    assert result.gain / result.standard_error == pytest.approx(truth.statistic)
    assert result.loss_ungrown is not None and result.loss_grown is not None
    assert result.gain == pytest.approx(result.loss_ungrown - result.loss_grown)


@pytest.mark.parametrize(
    ("settings", "pays"),
    [
        (TrialSettings(sigmas=0.0), True),
        (TrialSettings(sigmas=4.9), True),
        (TrialSettings(sigmas=5.1), False),
        (TrialSettings(sigmas=0.0, margin=0.09), True),
        (TrialSettings(sigmas=0.0, margin=0.11), False),
        (TrialSettings(sigmas=3.0, margin=0.05), False),
    ],
)
def test_a_gain_must_exceed_margin_and_error_together(settings: TrialSettings, pays: bool) -> None:
    spread = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(50)
    ungrown = torch.ones(100, dtype=torch.float64)
    grown = ungrown - 0.1 + 0.2 * spread * (99 / 100) ** 0.5  # lower by 0.1, with a standard error of 0.02
    assert judge(5, scores(ungrown), scores(grown), settings).pays == pays


def test_the_error_of_a_weighted_mean_is_that_of_a_ratio() -> None:
    """By the jackknife, which leaves out one sample at a time: the same to first order."""
    source = torch.Generator().manual_seed(0)
    values = torch.rand(400, generator=source, dtype=torch.float64)
    weights = torch.randint(1, 9, (400,), generator=source).double()
    without = [
        float((weights[kept] * values[kept]).sum() / weights[kept].sum())
        for kept in (torch.arange(400) != left_out for left_out in range(400))
    ]
    jackknife = (399 / 400 * sum((one - sum(without) / 400) ** 2 for one in without)) ** 0.5
    mean, error = mean_and_error(values, weights)
    assert mean == pytest.approx(float((weights * values).sum() / weights.sum()))
    assert error == pytest.approx(jackknife, rel=0.01)


# --- what becomes of sites


def test_sites_take_turns_also_where_events_are_undone(tmp_path: Path) -> None:
    result = mlp_run(tmp_path, where="round_robin", trial={"steps": 2, "margin": 1000.0})
    tried = [next(iter(attempt.widths)) for attempt in result.history.tried]
    assert tried == ["hidden.0.linear", "hidden.1.linear", "hidden.0.linear", "hidden.1.linear"]
    assert not {*tried} & {refusal.name for refusal in result.refusals}


def test_a_site_is_given_up_after_so_many_attempts_if_that_is_asked_for(tmp_path: Path) -> None:
    trial = {"steps": 2, "margin": 1000.0, "attempts": 2}
    result = mlp_run(tmp_path, where="round_robin", trial=trial, epochs=6)
    assert len(result.history.tried) == 4
    assert [refusal.reason for event in result.events for refusal in event.refused] == [
        "did not pay in 2 trials (growth.trial.attempts)"
    ] * 2
    assert result.history.ended == "every site has been given up"


def test_a_plateau_is_not_tried_again_before_its_window_has_passed(tmp_path: Path) -> None:
    when = {"name": "plateau", "window": 3, "min_slope": 100.0, "cooldown": 1}  # any slope is a plateau
    result = mlp_run(tmp_path, when=when, trial={"steps": 2, "margin": 1000.0}, epochs=8)
    epochs = [record.step for record in result.history.epochs]
    assert [event.step for event in result.events] == [epochs[2], epochs[6]]


def test_no_event_begins_that_could_not_be_judged(tmp_path: Path) -> None:
    result = mlp_run(tmp_path, when={"start": 4, "every": 1}, trial={"steps": 8})
    (note,) = lines(result, "no_growth")
    assert note["ends"] and note["reason"] == "growth.trial takes 8 steps, and 6 are left"


# --- what is told


def mlp_run(root: Path, epochs: int = 5, **growth: Any) -> RunResult:
    """On 300 digits, 6 steps an epoch."""
    settings: dict[str, Any] = {
        "data.limit": 300,
        "data.split": {"validate": 0.2, "diagnose": 0.0, "accept": 0.0},
        "model": {"name": "mlp", "hidden": [6, 6]},
        "train": {"epochs": epochs, "batch_size": 40, "optimizer": {"lr": 0.1}},
        "growth": {"when": {"start": 1, "every": 1}, "how_many": "fixed", **growth},
        "run": {"root": str(root), "tensorboard": False},
    }
    return run(config_from_overrides(settings), observers=())


def lines(result: RunResult | Path, kind: str) -> list[dict[str, Any]]:
    folder = result if isinstance(result, Path) else result.folder
    assert folder is not None
    found = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [line for line in found if line["event"] == kind]


def test_an_undone_event_is_logged_with_its_numbers_before_what_came_after_it(tmp_path: Path) -> None:
    result = mlp_run(tmp_path, trial={"margin": 1000.0})
    (first, *_) = lines(result, "growth")
    told = first["trial"]
    assert told["gain"] == pytest.approx(told["loss_ungrown"] - told["loss_grown"], abs=1e-12)
    assert told["needed"] == pytest.approx(1000.0 * told["loss_ungrown"] + told["standard_error"])
    assert told["steps"] == 6 and told["failures"] == {} and told["flops"] > 0
    assert lines(result, "new_units") == []
    order = [(line["event"], line["step"]) for kind in ("growth", "epoch") for line in lines(result, kind)]
    assert order == [("growth", 6 * n) for n in (1, 2, 3, 4)] + [("epoch", 6 * n) for n in (1, 2, 3, 4, 5)]
    assert result.folder is not None
    kinds = [json.loads(line)["event"] for line in (result.folder / "events.jsonl").read_text().splitlines()]
    assert kinds == ["started", *["epoch", "stage", "growth"] * 4, "epoch", "stage", "finished"]


def test_a_trial_spends_its_own_epoch_once_in_the_log(finish: Callable[..., Finished], tmp_path: Path) -> None:
    tried = finish(tmp_path, trial=HOPELESS)
    assert [line["epoch"] for line in lines(tried.outcome, "epoch")] == [1, 2, 3, 4]


class Ends(Exception):
    """Something that nobody foresees."""


def grown_fails(monkeypatch: pytest.MonkeyPatch, error: BaseException, also_ungrown: bool = False) -> None:
    """From the ninth step of a trial on, the model that has grown cannot train."""
    train, calls = Books.train, [0]

    def failing(books: Books, stop: Callable[[int], bool]) -> None:
        on_trial = stop.__name__ == "<lambda>"
        calls[0] += on_trial
        if on_trial and calls[0] > 2 and (also_ungrown or books.widths["conv"] > 4):
            raise error
        train(books, stop)

    monkeypatch.setattr(Books, "train", failing)


def test_a_grown_model_that_cannot_train_does_not_pay(
    finish: Callable[..., Finished], monkeypatch: pytest.MonkeyPatch
) -> None:
    never = finish(when="never")
    grown_fails(monkeypatch, TrainingError("no memory is left"))
    tried = finish(when={"start": 1, "every": 1, "events": 1}, trial={"steps": 12})
    (event,) = tried.outcome.events
    assert event.trial is not None and event.trial.steps == 12
    assert str(event.trial) == "on trial for 12 steps the grown model failed: no memory is left"
    assert event.undone == "it did not pay on trial"
    assert differing(tried.everything(), never.everything()) == []


def test_where_neither_model_can_train_the_run_fails(
    finish: Callable[..., Finished], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    grown_fails(monkeypatch, TrainingError("no memory is left"), also_ungrown=True)
    with pytest.raises(TrainingError, match="no memory is left"):
        finish(tmp_path, trial={"steps": 12})
    (failed,) = lines(tmp_path / "run" / "latest", "failed")
    assert failed["step"] == EPOCH + 8  # where the trial stood


@pytest.mark.parametrize("error", [KeyboardInterrupt, Ends])
def test_whatever_ends_a_trial_undoes_the_event(
    finish: Callable[..., Finished],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    error: type[BaseException],
) -> None:
    when = {"unit": "steps", "start": EPOCH + 8, "every": 99}  # ends the first stage where the trial ends
    never = finish(tmp_path / "never", when=when)
    grown_fails(monkeypatch, error())
    with pytest.raises(error):
        finish(tmp_path / "ended", trial={"steps": 12})
    folder = tmp_path / "ended" / "run" / "latest"
    assert lines(folder, "growth") == [] and [line["epoch"] for line in lines(folder, "epoch")] == [1, 2]
    if error is KeyboardInterrupt:
        assert [line["step"] for line in lines(folder, "interrupted")] == [EPOCH + 8]
        models = [growkit.load(tmp_path / "never" / "run" / "latest", 0, seed_model=Net())]
        models.append(growkit.load(folder, 1, seed_model=Net()))
        assert same(*[[*model.parameters(), *model.buffers()] for model in models])
    assert never.outcome.stages[0].last_step == EPOCH + 8


# --- settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data.split": {"validate": 0.0}},
            "growth.trial is judged on the validate split and needs 2 samples there, got 0; set data.split.validate",
        ),
        ({"growth.trial": {"steps": 30}}, "growth.trial must be shorter than the training of 30 steps, got 30"),
        ({"control": "seed"}, "control needs a growth plan known in advance, and growth.trial depends on training"),
    ],
)
def test_a_trial_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    settings = {
        "data.limit": 300,
        "data.split": {"validate": 0.2, "diagnose": 0.0, "accept": 0.0},
        "model": {"name": "mlp", "hidden": [6]},
        "train": {"epochs": 5, "batch_size": 40},
        "growth.trial": {"steps": 5},
    }
    with pytest.raises(UserInputError, match=message):
        assemble(config_from_overrides({**settings, **changes}), writes=False)
