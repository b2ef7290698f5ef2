"""Plain tables on stdout: aligned columns, readable by people and by `cut`. It only draws."""

import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence

import click

__all__ = ["facts", "table"]

NARROWEST = 16  # columns are not made narrower to fit the terminal


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a table; on a terminal the widest column is wrapped to fit."""
    for i, line in _lines([head, *rows]):
        click.echo(click.style(line, bold=True) if i == 0 else line)


def facts(values: Mapping[str, object]) -> None:
    """Write one `key  value` per line; values may come from strangers' files."""
    shown = ("".join(c if c.isprintable() else " " for c in str(v)) for v in values.values())
    for _, line in _lines(list(zip(values, shown, strict=True))):
        click.echo(line)


def _lines(rows: Sequence[Sequence[str]]) -> Iterator[tuple[int, str]]:
    """Yield the lines of aligned rows, each with the number of its row."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if sys.stdout.isatty():
        spare = shutil.get_terminal_size().columns - sum(widths) - 2 * (len(widths) - 1)
        while spare < 0 and max(widths) > NARROWEST:
            widths[widths.index(max(widths))] -= 1
            spare += 1
    for number, row in enumerate(rows):
        cells = [textwrap.wrap(c, w) or [""] for c, w in zip(row, widths, strict=True)]
        for i in range(max(map(len, cells))):
            parts = (c[i] if i < len(c) else "" for c in cells)
            padded = (f"{p:<{w}}" for p, w in zip(parts, widths, strict=True))
            yield number, "  ".join(padded).rstrip()
