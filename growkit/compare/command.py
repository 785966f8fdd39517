"""What the command `growkit compare` does."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from growkit.compare.arms import Arm, check_arms, check_follow, read_arms, read_seeds
from growkit.compare.baselines import derive, read_baselines
from growkit.errors import TrainingError, UserInputError
from growkit.folders import check_writable

if TYPE_CHECKING:
    from growkit.compare.campaign import Campaign, Choice
    from growkit.compare.measure import Measure
    from growkit.compare.runs import Outcome
    from growkit.compare.table import Comparison

__all__ = ["CompareSettings", "compare"]

MATCHES = ("flops", "steps", "none")
SPLITS = ("test", "validate", "train")


@dataclass(frozen=True)
class CompareSettings:
    """A comparison as it is asked for; the command line has an option for each.

    Attributes:
        arguments: arms and overrides, as `growkit.compare.arms.read_arms` takes them.
        seeds: `N`, or a list such as `0,3,7`.
        out: the folder of all runs and of what comes out.
        baselines: derived arms, such as `small,big`.
        match: what is made equal: flops, steps or none.
        tune_lr: a grid of learning rates; None leaves each arm its own.
        tune_seeds: how many seeds, other ones, each rate is tried with.
        against: name of the arm that the others are held against; None is the first one.
        split, metric: what is compared; None takes what the task is judged by.
        also_seed: settings beside `seed` that take the seed.
        jobs: runs at a time.
    """

    arguments: Sequence[str]
    seeds: str = "5"
    out: Path = Path("compare")
    baselines: str | None = None
    match: str = "flops"
    tune_lr: str | None = None
    tune_seeds: int = 2
    against: str | None = None
    split: str = "test"
    metric: str | None = None
    also_seed: Sequence[str] = ()
    jobs: int = 1


def compare(settings: CompareSettings, say: Callable[[str], None], *, dry_run: bool = False) -> dict[str, Any] | None:
    """Run or collect the arms on all seeds; print what came out and keep it in `out`.

    Args:
        settings: what to compare.
        say: takes each line of the account.
        dry_run: only say what would run.

    Returns:
        What OUT/compare.json holds; beside it stand compare.md, compare.png, curves.csv and the runs. None for a dry
            run.

    Raises:
        UserInputError: something that was given is wrong.
        TrainingError: runs failed; what came out of the others has been printed and kept.
    """
    arms, seeds, grid = _asked(settings)
    from growkit.compare.campaign import Campaign, apart  # from here on torch is imported
    from growkit.compare.measure import choose_measure
    from growkit.compare.prospect import Foresight

    campaign = Campaign(arms, settings.match, Foresight(seeds[0]), settings.out, settings.also_seed)
    measure = choose_measure(settings.split, settings.metric, list(campaign.prospects.values()), tunes=bool(grid))
    tuning_seeds = apart(seeds, settings.tune_seeds) if grid else []
    for line in _outline(campaign, seeds, grid, tuning_seeds):
        say(line)
    if dry_run:
        return None
    choices, outcomes = _carry_out(campaign, settings.jobs, seeds, grid, tuning_seeds, measure, say)
    comparison = _concluded(campaign, settings, seeds, tuning_seeds, measure, choices, outcomes)
    _keep(comparison)
    _show(comparison, say)
    return comparison.to_json()


def _asked(settings: CompareSettings) -> tuple[list[Arm], list[int], list[float]]:
    """Arms, seeds and learning rates, after all that can be refused before torch is imported."""
    seeds, grid, names = read_seeds(settings.seeds), _grid(settings.tune_lr), read_baselines(settings.baselines)
    for option, value, known in (("--match", settings.match, MATCHES), ("--split", settings.split, SPLITS)):
        if value not in known:
            raise UserInputError(f"{option} must be one of {', '.join(known)}, got {value!r}")
    given = read_arms(settings.arguments)
    arms = [*given, *derive(names, given)]
    check_arms(arms)
    check_follow(settings.also_seed, arms[0].config)
    known = [arm.name for arm in arms]
    if settings.against is not None and settings.against not in known:
        raise UserInputError(f"--against must be one of the arms, {', '.join(known)}, got {settings.against!r}")
    check_writable(settings.out, "--out")
    return arms, seeds, grid


def _grid(text: str | None) -> list[float]:
    """The learning rates of `0.05,0.1`."""
    try:
        grid = [] if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        grid = [math.nan]
    if not all(0 < rate < math.inf for rate in grid) or len(set(grid)) < len(grid):
        raise UserInputError(f"--tune-lr must be learning rates above 0 such as 0.05,0.1,0.2, each once, got {text!r}")
    return grid


def _outline(campaign: Campaign, seeds: Sequence[int], grid: Sequence[float], tuning: Sequence[int]) -> list[str]:
    """What is going to happen."""
    width = max(len(arm.name) for arm in campaign.arms)
    lines = [f"arm       {arm.name:<{width}}  {campaign.outlook(arm)}" for arm in campaign.arms]
    lines.append(f"seeds     {', '.join(map(str, seeds))}")
    if grid:
        rates, others = ", ".join(f"{rate:g}" for rate in grid), ", ".join(map(str, tuning))
        lines.append(f"tuning    learning rates {rates} for every arm, on validate with the seeds {others}")
    runs = len(campaign.arms) * (len(seeds) + len(grid) * len(tuning))
    lines.append(f"runs      {runs}, into {campaign.out}")
    return lines + [f"note      {note}" for note in campaign.notes]


def _carry_out(
    campaign: Campaign,
    jobs: int,
    seeds: Sequence[int],
    grid: Sequence[float],
    tuning_seeds: Sequence[int],
    measure: Measure,
    say: Callable[[str], None],
) -> tuple[dict[str, Choice], dict[str, dict[int, Outcome]]]:
    """Tune, then run; an interrupt leaves what is finished."""
    from growkit.compare.progress import Progress
    from growkit.compare.runs import Runner

    choices: dict[str, Choice] = {}
    with Progress(len(campaign.arms) * (len(seeds) + len(grid) * len(tuning_seeds)), say) as progress:
        try:
            if grid:
                tuner = Runner(jobs, progress.of(measure.on("validate")))
                choices = campaign.tune(tuner, grid, tuning_seeds, measure)
                for name, choice in choices.items():
                    progress.say(f"tuned     {name}: learning rate {choice.rate:g}")
            rates = {name: choice.rate for name, choice in choices.items()}
            return choices, campaign.run(Runner(jobs, progress.of(measure)), seeds, rates)
        except KeyboardInterrupt:
            progress.say(f"{progress.done} of {progress.total} runs are kept; the same command goes on from there")
            raise


def _concluded(
    campaign: Campaign,
    settings: CompareSettings,
    seeds: Sequence[int],
    tuning_seeds: Sequence[int],
    measure: Measure,
    choices: dict[str, Choice],
    outcomes: dict[str, dict[int, Outcome]],
) -> Comparison:
    from growkit.compare.summary import notes_on, summarise
    from growkit.compare.table import Comparison
    from growkit.environment import describe_environment

    against = settings.against or campaign.arms[0].name
    rows = summarise(campaign.arms, outcomes, measure, against, choices)
    environment = describe_environment()
    command = shlex.join(["growkit", *environment.pop("command")[1:]])
    anchor = campaign.anchor.name
    notes = notes_on(rows, against, anchor if campaign.match == "flops" else None, campaign.notes)
    return Comparison(
        rows, measure, against, seeds, tuning_seeds, campaign.match, anchor, notes, command, environment, campaign.out
    )


def _keep(comparison: Comparison) -> None:
    """Write compare.json, compare.md, compare.png and curves.csv."""
    from growkit.compare.curves import read_curves
    from growkit.compare.figure import draw
    from growkit.report import write_atomically
    from growkit.report.strict_json import to_json

    out, picture = comparison.out, "compare.png"
    curves = read_curves(comparison.rows, comparison.measure, comparison.against, comparison.axis)
    try:
        write_atomically(out / picture, draw(comparison.rows, curves, comparison.measure, comparison.against))
        write_atomically(out / "curves.csv", curves.to_csv().encode())
        write_atomically(out / "compare.md", comparison.markdown(picture).encode())
        write_atomically(out / "compare.json", (to_json(comparison.to_json(), indent=1) + "\n").encode())
    except OSError as error:
        raise UserInputError(
            f"--out {out} cannot be written: {error.strerror}; the runs are kept. Make room; the same command goes on"
        ) from error


def _show(comparison: Comparison, say: Callable[[str], None]) -> None:
    """Print the tables; tell of failures by the exit code."""
    say(f"\n{comparison.tables()}\n")
    for note in comparison.notes:
        say(f"note      {note}")
    say(f"files     {comparison.out}/compare.md, compare.json, compare.png, curves.csv")
    failed = sum(len(row.failures) for row in comparison.rows)
    if failed:
        runs = sum(len(row.outcomes) for row in comparison.rows)
        raise TrainingError(f"{failed} of {runs} runs failed; the tables leave them out, and the notes say why")
