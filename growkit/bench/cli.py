"""`growkit bench`: the commands; what they need is imported when they run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["commands"]

Guard = Callable[[Callable[..., None]], Callable[..., None]]


def commands(guarded: Guard) -> typer.Typer:
    """The group of commands; `guarded` turns growkit's errors into messages and exit codes."""
    group = typer.Typer(
        help="Measure growkit itself: on how many models growth works, what surgery, growth and optimizers cost.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    for command in (coverage, surgery, growth, optim):
        group.command()(guarded(command))
    return group


def coverage(
    models: Annotated[
        str, typer.Option("--set", help="torchvision, timm, or a file with one model a line (docs/bench.md).")
    ],
    out: Annotated[Path, typer.Option(help="Folder of rows and summaries; a rerun goes on from there.")] = Path(
        "bench/coverage"
    ),
    limit_seconds: Annotated[float, typer.Option(min=1, help="Wall time of one model, then it is killed.")] = 120,
    limit_gib: Annotated[float, typer.Option(min=1, help="Memory of one model.")] = 16,
    jobs: Annotated[int, typer.Option(min=1, help="Models at a time.")] = 1,
    only: Annotated[str, typer.Option(help="Measure only models whose name fits this glob.")] = "*",
    peer: Annotated[bool, typer.Option(help="Measure torch-pruning on the same models.")] = True,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Measure failed models again.")] = False,
) -> None:
    """Trace, verify and grow every model of a set, each in its own process; print and keep the summary."""
    from growkit.bench.coverage import CoverageSettings, run_coverage
    from growkit.bench.summary import render

    settings = CoverageSettings(models, out, limit_seconds, limit_gib, jobs, only, peer, retry_failed)
    typer.echo("\n" + render(run_coverage(settings, typer.echo)))


def surgery(
    out: Annotated[Path | None, typer.Option(help="Also write the numbers to this JSON file.")] = None,
    rounds: Annotated[int, typer.Option(min=3, help="Times each quantity is measured.")] = 7,
) -> None:
    """Compare edits, verification, undo, replay and analysis with forward passes, in CPU time of one thread."""
    from growkit.bench.surgery import render, run_surgery

    _measured(lambda: run_surgery(rounds), render, out)


def growth(
    out: Annotated[Path | None, typer.Option(help="Also write the numbers to this JSON file.")] = None,
    rounds: Annotated[int, typer.Option(min=3, help="Times each quantity is measured.")] = 7,
) -> None:
    """Compare growth events by GradMax with training steps and with the plain form, in CPU time of one thread."""
    from growkit.bench.growth import render_growth, run_growth

    _measured(lambda: run_growth(rounds), render_growth, out)


def optim(
    out: Annotated[Path | None, typer.Option(help="Also write the numbers to this JSON file.")] = None,
    rounds: Annotated[int, typer.Option(min=3, help="Times each step is measured, at least.")] = 9,
) -> None:
    """Compare steps of SAM, ASAM and AdaBound with torch's and pytorch_optimizer's, in CPU time of one thread."""
    from growkit.bench.optim import need_peer, render_optim, run_optim

    need_peer()
    _measured(lambda: run_optim(rounds), render_optim, out)


def _measured(run: Callable[[], dict[str, Any]], render: Callable[[dict[str, Any]], str], out: Path | None) -> None:
    """Print what a benchmark gives, and write it to a file that is opened before minutes are spent."""
    from growkit.bench.surgery import reserve, write

    if out is not None:
        reserve(out)
    result = run()
    typer.echo(render(result))
    if out is not None:
        write(result, out)
