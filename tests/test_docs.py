"""Generated pages say what the code says; `make docs` writes them anew."""

import itertools
from pathlib import Path
from typing import Any

import click
import pytest

from mlxsteer.cli import cli

ROOT = Path(__file__).parents[1]
COMMANDS = ROOT / "docs" / "commands.md"


def commands(
    command: click.Command, name: str, parent: click.Context | None = None
) -> list[tuple[str, str]]:
    """Return every command below `command` with its help, as on a terminal of 100 columns."""
    settings: dict[str, Any] = {**command.context_settings, "terminal_width": 100}
    settings["max_content_width"] = 100
    context = click.Context(command, parent=parent, info_name=name.split()[-1], **settings)
    found = [(name, command.get_help(context))]
    if isinstance(command, click.Group):
        for word in command.list_commands(context):
            below = command.get_command(context, word)
            assert below is not None
            found += commands(below, f"{name} {word}", context)
    return found


def commands_page() -> str:
    """Return the page of all commands."""
    head = "# Commands\n\nThe help of every command; `make docs` writes this page.\n"
    parts = [f"\n## {name}\n\n```text\n{text}\n```\n" for name, text in commands(cli, "mlxsteer")]
    return head + "".join(parts)


def test_the_page_of_commands_is_current(request: pytest.FixtureRequest) -> None:
    page = commands_page()
    if request.config.getoption("--write-docs"):
        COMMANDS.parent.mkdir(exist_ok=True)
        COMMANDS.write_text(page)
    assert COMMANDS.read_text() == page, "run make docs"


def test_every_option_says_what_it_is() -> None:
    for name, text in commands(cli, "mlxsteer"):
        assert "Usage:" in text
        lines = text.splitlines()
        for line, after in itertools.pairwise([*lines, ""]):
            if line.startswith("  -") and "  " not in line.strip() and not after.startswith("    "):
                pytest.fail(f"{name}: {line.strip()} has no help")
