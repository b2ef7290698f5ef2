"""The command line: one file per noun, read only when its command is used.

Data goes to stdout, talk and progress to stderr. Every error is caught here, once, and printed as
one line: exit code 2 for usage, 1 for the rest, 130 after Ctrl-C; a traceback only with `--debug`.
Help and listings import neither mlx nor transformers.
"""

import importlib
import io
import logging
import re
import sys
import traceback
from typing import Any

import click

from .. import __version__
from ..errors import MlxsteerError
from .options import Group, say

__all__ = ["cli", "main"]

COMMANDS = {  # name -> one line of help; each is `command` in the module of its name
    "bench": "Measure what steering costs on this machine.",
    "calibrate": "Fix the scale of a vector: strength 1 costs half a nat.",
    "demo": "See one answer written unsteered and steered both ways.",
    "eval": "Judge a vector: does it do what it says?",
    "extract": "Find the direction of a concept in a model.",
    "generate": "Write text with a steered model.",
    "models": "The models that are known by name.",
    "sweep": "Find out where and how to steer a concept.",
    "vectors": "The library of concepts, and vector files.",
}


class _Lazy(Group):
    """Lists commands without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f".{cmd_name}", __name__).command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:  # click itself would leave an empty line
            raise click.Abort() from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(sorted(COMMANDS.items()))


@click.group(
    cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="mlxsteer")
@click.option("--debug", is_flag=True, help="Show the traceback of an error (with any command).")
def cli(debug: bool) -> None:
    """Steer language models: find the direction of a concept inside a model, and push the model
    along it while it writes.

    \b
    Example:
      mlxsteer generate "How was your day?" -s joyful=1 --compare
    """


class _Talk(logging.Handler):
    """Notes of the library, one line each on stderr, the same one once."""

    def __init__(self) -> None:
        super().__init__()
        self.said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        line = _one_line(record.getMessage())
        if line not in self.said:
            self.said.add(line)
            say(f"note: {line}")


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that is not UTF-8 ends no answer
    log = logging.getLogger("mlxsteer")
    log.handlers[:] = [_Talk()]
    log.setLevel(logging.INFO)
    log.propagate = False
    sys.exit(_run(sys.argv[1:] if args is None else args))


def _run(words: list[str]) -> int:
    """Run one command and return its exit code; whatever it raises becomes one line."""
    end = words.index("--") if "--" in words else len(words)
    debug = "--debug" in words[:end]
    words = [word for word in words[:end] if word != "--debug"] + words[end:]
    try:
        result: Any = cli.main(words or ["--help"], prog_name="mlxsteer", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.Abort:
        say("interrupted")
        return 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        line, code = _told(error)
        say(f"error: {_one_line(line)}")
        return code


def _told(error: Exception) -> tuple[str, int]:
    """Return what to say of an error, and the exit code."""
    if isinstance(error, MlxsteerError):
        return str(error), error.exit_code
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "mlxsteer"
        return f"{error.format_message().rstrip('.')} ({path} --help)", error.exit_code
    if isinstance(error, MemoryError) or re.search(
        r"malloc\]|insufficient memory|out of memory", str(error), re.IGNORECASE
    ):
        said = str(error)[:100] or "MemoryError"
        return (
            f"not enough memory ({said}): close other programs, take a smaller model or "
            "quantization (mlxsteer models list), or fewer --max-tokens"
        ), 1
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}", 1
    said = str(error) or "no message"
    return f"{type(error).__name__}: {said} (mlxsteer --debug ... says where)", 1


def _one_line(text: str) -> str:
    """Return what may come from strangers' files so that it cannot act on a terminal."""
    joined = " ".join(line.strip() for line in text.splitlines())
    return "".join(c if c.isprintable() else " " for c in joined)
