"""`mlxsteer bench`: what steering costs on this machine, with intervals and node counts."""

import json
import os
import time
from pathlib import Path
from typing import Any

import click

from .options import Group, ModelChoice, check_output, model_options, say

__all__ = ["command"]

QUICK_CASES = ("idle", "add-1", "add-10", "project")


def _numbers(name: str, most: int) -> Any:
    def read(ctx: click.Context, param: click.Parameter, text: str | None) -> list[int] | None:
        from ..errors import UsageError

        if text is None:
            return None
        parts = text.split(",")
        if not all(part.strip().isdecimal() and 0 < int(part) <= most for part in parts):
            raise UsageError(f"--{name} {text!r}: use numbers from 1 to {most}, as in 128,1024")
        return sorted({int(part) for part in parts})

    return read


def _outputs(function: Any) -> Any:
    for option in (
        click.option("--plots", type=click.Path(path_type=Path), help="Draw PNGs in this folder."),
        click.option("--markdown", type=click.Path(path_type=Path), help="Write a page here."),
    ):
        function = option(function)
    return function


@click.group("bench", cls=Group, invoke_without_command=True)
@model_options
@click.option("--quick", is_flag=True, help="The most important cases, within a minute.")
@click.option("--case", "names", multiple=True, metavar="NAME", help="One case; may be repeated.")
@click.option("--context", callback=_numbers("context", 10**6), help="Tokens  [128,1024,4096]")
@click.option("--batch", callback=_numbers("batch", 256), help="Rows  [1,4,8,16]")
@click.option(
    "--seconds", type=click.FloatRange(0, min_open=True), help="The most for a comparison.  [60]"
)
@click.option(
    "--json",
    "json_",
    type=click.Path(path_type=Path),
    help="Write the result here; a folder names it.",
)
@_outputs
@click.pass_context
def command(
    ctx: click.Context,
    model: ModelChoice,
    quick: bool,
    names: tuple[str, ...],
    context: list[int] | None,
    batch: list[int] | None,
    seconds: float | None,
    json_: Path | None,
    markdown: Path | None,
    plots: Path | None,
) -> None:
    """Measure what steering costs in tokens/s: MODEL steered in many ways against itself.

    With --json the last line on stdout is the whole result as one JSON document, too.

    \b
    Example:
      mlxsteer bench --quick
      mlxsteer bench -m llama-3.2-3b --json m4-llama-3.2-3b.json
    """
    if ctx.invoked_subcommand is not None:
        return
    for path, suffix in ((json_, ".json"), (markdown, ".md")):
        if path is not None and not (path is json_ and path.is_dir()):
            check_output(path, suffix)
    from ..bench.cases import cases
    from ..bench.measure import Patience
    from ..bench.pages import file_name
    from ..bench.suite import Plan, run
    from ..progress import bars
    from .sources import load_model

    chosen = cases(names or (QUICK_CASES if quick else ()))
    plan = Plan(
        chosen,
        contexts=context or ((128,) if quick else (128, 1024, 4096)),
        batches=batch or ((1,) if quick else (1, 4, 8, 16)),
        prefill=not quick,
        peers=not (quick or names),
        patience=Patience(seconds=seconds or (5 if quick else 60)),
    )
    kept: list[Any] = []

    def keep(results: Any) -> None:
        kept[:] = [results]
        if json_ is not None:
            results.save(json_ / file_name(results) if json_.is_dir() else json_)

    try:
        with bars() as progress:
            start = time.perf_counter()
            loaded, _ = load_model(model, progress)
            seconds_taken = time.perf_counter() - start
            run(loaded, plan, load_seconds=seconds_taken, found=keep, progress=progress)
    finally:  # after Ctrl-C, too
        for results in kept:
            _show(results, markdown, plots)
            if json_ is not None:
                click.echo(json.dumps(results.to_json()))


@command.command("show")
@click.argument("result", type=click.Path(path_type=Path))
@_outputs
def show(result: Path, markdown: Path | None, plots: Path | None) -> None:
    """Show a RESULT that --json wrote.

    Its page and plots are drawn from it alone.
    """
    from ..bench.results import read_results

    if markdown is not None:
        check_output(markdown, ".md")
    _show(read_results(result), markdown, plots)


@command.command("compare")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
def compare(a: Path, b: Path) -> None:
    """Compare two results row by row, as Markdown.

    They may be of two machines, versions or commits.

    \b
    Example:
      mlxsteer bench compare before.json after.json
    """
    from ..bench.pages import compare_page
    from ..bench.results import read_results
    from ..errors import MlxsteerError

    first, second = read_results(a), read_results(b)
    text = compare_page(first, second, (a.stem, b.stem))
    if text is None:
        raise MlxsteerError(f"{a} and {b} have no row in common")
    click.echo(text, nl=False)


def _show(results: Any, markdown: Path | None, plots: Path | None) -> None:
    from ..bench.pages import HEAD, cells, file_name, page, plot_contexts, plot_overhead, summary
    from .listing import table

    drawn = []
    if plots is not None:
        plots.mkdir(parents=True, exist_ok=True)
        for name, draw in (("overhead", plot_overhead), ("contexts", plot_contexts)):
            drawn.append(plots / f"{name}.png")
            draw(results, drawn[-1])
    if markdown is not None:
        relative = [Path(os.path.relpath(path, markdown.parent)) for path in drawn]
        markdown.write_text(page(results, relative), encoding="utf-8")
    table(HEAD, [cells(row) for row in results.rows])
    say(summary(results))
    say(f"its name among results: {file_name(results)}")
    if results.partial:
        say("partial: the run was interrupted, rows are missing")
    for row in results.rows:
        if row.verdict == "FAIL":
            what = "the instrument is blind" if row.control else "below its target"
            say(f"FAIL: {row.case}, {row.work}: {what}")
