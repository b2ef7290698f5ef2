"""A benchmark's result as people read it: rows of a table, a Markdown page, plots.

Everything is drawn from the results alone, so that a page can be made again from its JSON.
"""

from collections.abc import Sequence
from pathlib import Path

from ..model_ref import base_name
from ..report import COLOURS, figure, markdown_table
from .machine import short_name
from .results import Results, Row, compared, differences

__all__ = [
    "HEAD",
    "cells",
    "compare_page",
    "file_name",
    "page",
    "plot_contexts",
    "plot_overhead",
    "summary",
]

HEAD = (
    "work",
    "case",
    "against",
    "speed, 95% interval",
    "tokens/s",
    "first token",
    "peak GB",
    "nodes",
    "host ms",
    "target",
)


def cells(row: Row) -> list[str]:
    """Return a row of the table under `HEAD`."""
    extra = row.extra_nodes
    host = "" if row.host_ms is None else f"{row.host_ms:.2f} / {row.base_host_ms:.2f}"
    target = "" if row.target is None else f">= {row.target:g}: {row.verdict}"
    if row.case == "idle":
        target = f"same graph: {row.verdict}"
    if row.control:
        target = f"below 1: {row.verdict}"
    return [
        row.work,
        row.case,
        row.base,
        f"{row.ratio:.3f} [{row.low:.3f}, {row.high:.3f}]",
        f"{row.speed:.1f} / {row.base_speed:.1f}",
        f"{row.seconds:.2f} s"
        if row.kind == "prefill" and not row.behind and row.case != "capture"
        else "",
        f"{row.peak_gb:.2f} / {row.base_peak_gb:.2f}",
        "" if extra is None else f"{extra:+d}" if extra else "0",
        host,
        target,
    ]


def summary(results: Results) -> str:
    """Return one line on what was measured, and on what."""
    m, model = results.machine, results.model
    gpu = f", {m['gpu_cores']} GPU cores" if m["gpu_cores"] else ""
    versions = ", ".join(f"{name} {number}" for name, number in m["versions"].items())
    power = "".join(f", {m[key]}" for key in ("power", "thermal") if m[key])
    return (
        f"{model['repo']} ({model['quantization']} as stored, computed in {model['dtype']}) on "
        f"{m['chip']}, {m['cpu_cores']} CPU cores{gpu}, {m['memory_gb']:g} GB, {m['system']}, "
        f"device {m['device']}{power}; {versions}; commit {m['commit'] or 'of the wheel'}"
    )


def file_name(results: Results) -> str:
    """Return the name of a result among others: machine and model."""
    return f"{short_name(results.machine)}-{base_name(results.model['repo'] or 'model')}.json"


def page(results: Results, plots: Sequence[Path] = ()) -> str:
    """Return the Markdown page of a result; plots are given relative to it."""
    said = sorted({(row.case, row.says, row.base) for row in results.rows})
    parts = [
        "# What steering costs\n",
        summary(results) + ".\n",
        "Speed is that of the case over that of its base, interleaved in blocks A B B A in one "
        "process: the ratio of medians with its bootstrap 95% interval. Tokens/s are of the case "
        "/ its base, all rows together; of a whole prompt with the time until its first token is "
        "there. Prefill behind a context is a piece of the prompt that follows so many tokens. "
        "Peak is the most memory that MLX held. Nodes are graph nodes of one pass beyond the "
        "base's; host ms is what the host takes to build the graph of a step. A target passes "
        "when the lower end reaches it with an interval no wider than 0.02, fails when not even "
        "the upper end does, and else stays open.\n",
    ]
    if results.partial:
        parts.append("**This run was interrupted: rows are missing.**\n")
    parts += [f"![{path.stem}]({path.as_posix()})\n" for path in plots]
    parts.append(markdown_table(HEAD, [cells(row) for row in results.rows]))
    parts.append(markdown_table(("case", "what it is", "against"), said))
    settings = results.settings
    parts.append(
        f"Loading took {results.load_seconds:g} s. A comparison ended when its interval was "
        f"narrower than {settings['width']:g} or after {settings['seconds']:g} s.\n"
    )
    return "\n".join(parts)


def compare_page(a: Results, b: Results, names: tuple[str, str]) -> str | None:
    """Return what two results say of the same rows, as Markdown; None without common rows."""
    pairs = compared(a, b)
    if not pairs:
        return None
    head = ("work", "case", f"speed, {names[0]}", f"speed, {names[1]}", "apart", "tokens/s")
    rows = [
        [
            x.work,
            x.case,
            f"{x.ratio:.3f} [{x.low:.3f}, {x.high:.3f}]",
            f"{y.ratio:.3f} [{y.low:.3f}, {y.high:.3f}]",
            "yes" if x.high < y.low or y.high < x.low else "",
            f"{x.speed:.1f} -> {y.speed:.1f} ({y.speed / x.speed - 1:+.0%})",
        ]
        for x, y in pairs
    ]
    said = "".join(f"- {line}\n" for line in differences(a, b)) or "- nothing but the time\n"
    return f"Differs:\n\n{said}\n{markdown_table(head, rows)}"


def plot_overhead(results: Results, path: Path) -> None:
    """Draw the speed of every decode case over its base, with intervals."""
    rows = [r for r in results.rows if r.kind == "decode" and not r.control][::-1]
    with figure(path, 7, 0.8 + 0.19 * len(rows)) as axes:
        for i, row in enumerate(rows):
            colour = COLOURS[1] if row.base == "mlx-lm" else COLOURS[0]
            axes.plot([row.low, row.high], [i, i], color=colour, linewidth=2)
            axes.plot([row.ratio], [i], "o", color=colour, markersize=4)
        axes.axvline(1, color=COLOURS[4], linewidth=1)
        axes.set_yticks(range(len(rows)), [f"{r.case}, {r.work}" for r in rows])
        axes.set_xlabel("speed over that of the base (1: costs nothing), 95% interval")
        axes.set_title(f"Decoding, {results.model['repo']} on {results.machine['chip']}")


def plot_contexts(results: Results, path: Path) -> None:
    """Draw tokens/s by context, off and steered, for one row.

    Steered is one speed of off times the case's ratio: the machine changed between comparisons.
    """
    names = ("add-1", "add-10", "project")
    rows = [r for r in results.rows if r.batch == 1 and r.base == "off" and not r.control]
    with figure(path, 7.5, 3.2, axes=2) as both:
        for axes, kind in zip(both, ("decode", "prefill"), strict=True):
            here = [r for r in rows if r.kind == kind]
            off: dict[int, float] = {}
            for r in here:
                off.setdefault(r.context, r.base_speed)
            axes.plot(list(off), list(off.values()), "o-", color=COLOURS[4], label="off")
            for name, colour in zip(names, COLOURS, strict=False):
                found = [r for r in here if r.case == name]
                axes.plot(
                    [r.context for r in found],
                    [off[r.context] * r.ratio for r in found],
                    "o--",
                    color=colour,
                    label=name,
                    markersize=3,
                )
            axes.set_xscale("log", base=2)
            axes.set_xticks(list(off), [str(context) for context in off])
            axes.set_ylim(bottom=0)
            axes.set_xlabel("tokens of context")
            axes.set_ylabel("tokens/s")
            axes.set_title(f"{kind}, one row")
        both[0].legend()
