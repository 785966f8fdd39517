"""`growkit compare`: the command; what it needs is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["compare"]


def compare(
    arms: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]FILE... [KEY.PATH=VALUE]...",
            help="YAML files, and settings for all of them; settings of one go behind its file, in quotes.",
        ),
    ],
    seeds: Annotated[str, typer.Option(help="How many seeds from 0 on, or a list such as 0,3,7.")] = "5",
    out: Annotated[Path, typer.Option(help="Folder of all runs and tables; a rerun goes on from there.")] = Path(
        "compare"
    ),
    baselines: Annotated[
        str | None, typer.Option(help="Of small,big,random,uniform: derived from the first arm that grows.")
    ] = None,
    match: Annotated[str, typer.Option(help="What is made equal: training flops, steps, or none.")] = "flops",
    tune_lr: Annotated[
        str | None, typer.Option(help="Grid such as 0.05,0.1,0.2 to choose every arm's learning rate from.")
    ] = None,
    tune_seeds: Annotated[int, typer.Option(min=1, help="Seeds that each rate is tried with; other ones.")] = 2,
    against: Annotated[str | None, typer.Option(help="The arm the others are held against; else the first.")] = None,
    split: Annotated[str, typer.Option(help="test, validate or train.")] = "test",
    metric: Annotated[str | None, typer.Option(help="As in result.json; else what the task is judged by.")] = None,
    also_seed: Annotated[
        list[str] | None, typer.Option(metavar="KEY.PATH", help="A setting that takes the seed too.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would run; run nothing.")] = False,
) -> None:
    """Compare arms over seeds: means, paired differences with intervals, and what each cost."""
    from growkit.compare.command import CompareSettings
    from growkit.compare.command import compare as run_comparison

    settings = CompareSettings(
        arguments=arms,
        seeds=seeds,
        out=out,
        baselines=baselines,
        match=match,
        tune_lr=tune_lr,
        tune_seeds=tune_seeds,
        against=against,
        split=split,
        metric=metric,
        also_seed=also_seed or (),
        jobs=jobs,
    )
    run_comparison(settings, typer.echo, dry_run=dry_run)
