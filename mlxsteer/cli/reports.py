"""What a command that measures leaves behind: its record as JSON, its tables, its plot."""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from .options import Command, check_output

__all__ = ["Reports", "report_options"]


@dataclass(frozen=True)
class Reports:
    """Where the three go; None is nowhere."""

    json: Path | None
    markdown: Path | None
    plot: Path | None

    def check(self) -> None:
        """Refuse what cannot be written, before anything is measured.

        Raises:
            MlxsteerError: plots are asked for, and matplotlib is not installed.
            UsageError: a path of another suffix or in no folder.
        """
        from ..report import check_drawing

        wanted = ((self.json, ".json"), (self.markdown, ".md"), (self.plot, ".png"))
        for path, suffix in wanted:
            if path is not None:
                check_output(path, suffix)
        if self.plot is not None:
            check_drawing()

    def write(self, record: dict[str, Any], tables: str, draw: Callable[[Path], None]) -> None:
        """Write what was asked for; every file appears whole or not at all."""
        from ..vector_file import whole_file

        document = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
        for path, text in ((self.json, document), (self.markdown, tables)):
            if path is not None:
                with whole_file(path) as temporary:
                    temporary.write_text(text, encoding="utf-8")
        if self.plot is not None:
            draw(self.plot)


def report_options(drawn: str) -> Callable[[Command], Command]:
    """Add `--json`, `--markdown` and `--plot`, as one `Reports`; `drawn` says what is plotted."""

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def reporting(
            *args: Any, json_: Path | None, markdown: Path | None, plot: Path | None, **rest: Any
        ) -> Any:
            return command(*args, reports=Reports(json_, markdown, plot), **rest)

        made: Command = reporting
        kind = click.Path(path_type=Path)
        for option in (
            click.option("--plot", type=kind, help=f"Draw {drawn} here."),
            click.option("--markdown", type=kind, help="Write the tables here."),
            click.option("--json", "json_", type=kind, help="Write all of it here."),
        ):
            made = option(made)
        return made

    return decorate
