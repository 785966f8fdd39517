"""The command line. Settings are checked before torch is imported; bad input ends with one message and code 2."""

from __future__ import annotations

import functools
import io
import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, ParamSpec

import typer

import growkit
from growkit.bench.cli import commands as bench_commands
from growkit.compare.cli import compare
from growkit.config import Config, dump_config, json_schema, load_config
from growkit.config.run import RunSettings
from growkit.errors import ConfigError, GrowkitError

__all__ = ["app", "main"]

INTERRUPTED = 130

P = ParamSpec("P")

app = typer.Typer(
    name="growkit",
    help="Grow neural networks: train a seed, widen it where and when it pays, keep the function at every step.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _guarded(command: Callable[P, None]) -> Callable[P, None]:
    """Turn growkit's errors into one message and their exit code; any other exception is a fault of growkit's own."""

    @functools.wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            typer.echo("growkit: interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:  # whoever read the output has seen enough
            _forget_output()
        except GrowkitError as error:
            typer.echo(f"growkit: {_message(error)}", err=True)
            raise typer.Exit(error.exit_code) from None

    return guarded


def _forget_output() -> None:
    """Let Python's own flush at exit go nowhere, in place of failing on a closed pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _message(error: GrowkitError) -> str:
    if not isinstance(error, ConfigError):
        return str(error)
    wrong = "1 setting is wrong" if len(error.problems) == 1 else f"{len(error.problems)} settings are wrong"
    return "\n  ".join([f"{wrong}:", *error.problems])


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"growkit {growkit.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
@_guarded
def run(
    config: Annotated[Path, typer.Argument(help="The run's YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY.PATH=VALUE]...", help="Settings that go on top of the file's.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print settings, sizes and the growth plan; train nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per event.")] = False,
) -> None:
    """Train and grow one model."""
    settings = load_config(config, overrides or ())
    if dry_run:
        _dry_run(settings, as_json)
        return
    from growkit.pipeline import run as run_pipeline
    from growkit.report import ConsoleReport, JsonLines

    run_pipeline(settings, observers=[JsonLines(sys.stdout, keep_open=True) if as_json else ConsoleReport()])


@app.command()
@_guarded
def inspect(
    target: Annotated[
        str,
        typer.Argument(
            help="A YAML file, a model such as wrn, package.module:callable (or an instance), torchvision:NAME or "
            "timm:NAME."
        ),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY.PATH=VALUE]...", help="Settings that go on top.")
    ] = None,
    example: Annotated[
        list[str] | None,
        typer.Option(metavar="SHAPE", help="Shape of one sample, such as 3x224x224 or 128:int64; once for each input."),
    ] = None,
    svg: Annotated[Path | None, typer.Option(help="Draw the model into this file.")] = None,
    graphml: Annotated[Path | None, typer.Option(help="Write the graph into this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Try every site on a copy and compare the outputs.")] = False,
) -> None:
    """Show which widths of a model can grow, which cannot, and why."""
    from growkit.inspection import inspect as inspect_target

    inspect_target(
        target, overrides or (), shapes=example or (), svg=svg, graphml=graphml, as_json=as_json, verify=verify
    )


@app.command()
@_guarded
def doctor(
    root: Annotated[str, typer.Option(help="Folder of runs that is tried.")] = RunSettings().root,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say whether a run can work here: versions, devices, folders, data, extras, and what would mend them."""
    from growkit.doctor import doctor as examine

    examine(root, as_json=as_json)


@app.command()
@_guarded
def init(
    place: Annotated[Path, typer.Argument(metavar="DIR", help="Your data: a folder or a file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY.PATH=VALUE]...", help="Settings that go on top.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The YAML file to write; by default it has the data's name.")] = None,
    target: Annotated[str | None, typer.Option(help="Column of a table to predict; else it is guessed.")] = None,
    kind: Annotated[
        str | None, typer.Option(help="What to take the data for: images, table, text, pairs or arrays.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Look at your data and write a commented YAML file that runs."""
    from growkit.starting import init as start

    start(place, overrides or (), out=out, target=target, kind=kind, force=force)


@app.command()
@_guarded
def schema() -> None:
    """Print the JSON schema of a run's YAML file, for editors."""
    typer.echo(json.dumps(json_schema(), indent=2))


app.command()(_guarded(compare))
app.add_typer(bench_commands(_guarded), name="bench")


def _dry_run(settings: Config, as_json: bool) -> None:
    from growkit.dry_run import describe, render

    facts = describe(settings)
    if as_json:
        typer.echo(json.dumps(facts, default=str))
    else:
        typer.echo(dump_config(settings) + "\n" + render(facts))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 the user's input, 3 the run failed, 130 interrupted."""
    with suppress(OSError):  # the folder may be gone
        sys.path.append(str(Path.cwd()))  # last, so that modules there are found but shadow nothing
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show a letter shows its code
    try:
        app(args=arguments)
    finally:
        _flush()


def _flush() -> None:
    try:
        sys.stdout.flush()
    except OSError as error:
        _forget_output()
        if not isinstance(error, BrokenPipeError):
            print(f"growkit: standard output cannot be written: {error.strerror}", file=sys.stderr)
            sys.exit(GrowkitError.exit_code)


if __name__ == "__main__":
    main()
