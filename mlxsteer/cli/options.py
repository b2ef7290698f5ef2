"""What several commands share: groups, the options that choose a model, and what words mean.

Parsing and checking only; models are loaded and vectors found in `sources`. It knows nothing of any
one command.
"""

import functools
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ..errors import UsageError

__all__ = [
    "Group",
    "ModelChoice",
    "as_json",
    "check_folder",
    "check_output",
    "check_prompt",
    "json_option",
    "model_option",
    "model_options",
    "parse_band",
    "parse_layers",
    "parse_steer",
    "say",
    "short_name",
    "strength_one",
    "tokens_option",
    "whole_number",
]

DEFAULT_MODEL = "smollm2-135m"
MAX_STRENGTH = 1e6  # far beyond use; what overflows a model's dtype below it is seen as it runs
MAX_LAYER = 9999

Command = Callable[..., Any]


class Group(click.Group):
    """Commands under one noun; an unknown name is answered with the nearest."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            from ..tables import near

            ctx.fail(f"no command is called {args[0]!r}{near(args[0], self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)


@dataclass(frozen=True)
class ModelChoice:
    """The words that choose a model, as `loading.load` takes them."""

    name: str
    revision: str | None
    dtype: str | None
    keep_quantized: bool | None


def model_option(command: Command) -> Command:
    """Add `-m`."""
    return click.option(
        "-m",
        "--model",
        envvar="MLXSTEER_MODEL",
        default=DEFAULT_MODEL,
        show_default=True,
        show_envvar=True,
        metavar="MODEL",
        help="Known name, folder, .gguf file or Hub id (owner/name).",
    )(command)


def model_options(command: Command) -> Command:
    """Add `-m`, `--revision`, `--dtype` and `--keep-quantized`, as one `ModelChoice`."""

    @functools.wraps(command)
    def chosen(
        *args: Any,
        model: str,
        revision: str | None,
        dtype: str | None,
        keep_quantized: bool | None,
        **rest: Any,
    ) -> Any:
        return command(*args, model=ModelChoice(model, revision, dtype, keep_quantized), **rest)

    made: Command = chosen
    for option in (
        click.option(
            "--keep-quantized/--dequantize",
            default=None,
            help="Leave packed weights packed.  [default: packed on a GPU, not on a CPU]",
        ),
        click.option(
            "--dtype",
            type=click.Choice(["float32", "bfloat16", "float16"]),
            help="Of weights that are not packed.  [default: as stored on a GPU, float32 on a CPU]",
        ),
        click.option("--revision", help="Branch, tag or commit of a Hub model."),
        model_option,
    ):
        made = option(made)
    return made


def tokens_option(default: int) -> Callable[[Command], Command]:
    """Add `-n`."""
    return click.option(
        "-n",
        "--max-tokens",
        default=default,
        show_default=True,
        metavar="N",
        callback=whole_number(1),
        help="The most tokens to write.",
    )


def whole_number(least: int, most: int = 2**31 - 1) -> Callable[..., int | None]:
    """Return the callback of an option that refuses a number out of this range."""

    def check(ctx: click.Context, param: click.Parameter, value: int | None) -> int | None:
        if value is not None and not least <= value <= most:
            raise UsageError(f"{param.opts[-1]} {value}: use a whole number from {least} to {most}")
        return value

    return check


def json_option(command: Command) -> Command:
    """Add `--json`."""
    return click.option("--json", "json_", is_flag=True, help="One JSON document.")(command)


def as_json(value: Any) -> None:
    """Write one JSON document to stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def say(line: str) -> None:
    """Write a line of talk to stderr, above a progress bar (click.echo would write into it)."""
    print(line, file=sys.stderr, flush=True)


def short_name(model: str) -> str:
    """Return the last part of a model's name, folder, file or Hub id: what its vectors' files are
    called.
    """
    place = Path(model)
    return (place.resolve() if place.exists() else place).name.removesuffix(".gguf")


def parse_steer(text: str) -> tuple[str, float]:
    """Read `NAME=STRENGTH`; `NAME` alone is strength 1.

    Raises:
        UsageError: the strength is no finite number, or there is no name.
    """
    name, equals, number = text.rpartition("=")
    if not equals:
        name, number = text, "1"
    try:
        strength = float(number)
    except ValueError:
        strength = math.nan
    if not name or not math.isfinite(strength):
        raise UsageError(f"-s {text!r}: use NAME=STRENGTH with a finite number, e.g. -s joyful=1")
    if abs(strength) > MAX_STRENGTH:
        raise UsageError(f"-s {text!r}: no strength is that large; 1 is the calibrated one")
    return name, strength


def parse_layers(text: str | None) -> list[int] | None:
    """Read `10-19`, `3,5,7` or a mixture.

    Raises:
        UsageError: anything else.
    """
    if text is None:
        return None
    layers: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UsageError(
                f"--layers {text!r}: use numbers from 0 and ranges, as in 10-19 or 3,5,7"
            )
        start, stop = int(first), int(last or first)
        if stop < start:
            raise UsageError(f"--layers {text!r}: {part.strip()} runs backwards")
        if stop > MAX_LAYER:
            raise UsageError(f"--layers {text!r}: no model has a layer {stop}")
        layers.update(range(start, stop + 1))
    return sorted(layers)


def parse_band(text: str | None) -> list[int] | str | None:
    """Read `auto`, `middle` or what `parse_layers` reads: the layers of a vector to be made.

    Raises:
        UsageError: anything else.
    """
    return text if text in ("auto", "middle") else parse_layers(text)


def strength_one(vector: Any) -> str:
    """Return in words what strength 1 of a vector does, calibrated or not."""
    what = "direction" if vector.encoders is None else "feature"
    if vector.op == "add":
        return "adds its rows as stored"
    if any(scale != 1 for scale in vector.scales):
        return f"does {vector.op} as far as its scales say"
    held = {"clamp": f"holds the {what} at its target", "cap": f"keeps the {what} below its target"}
    return held.get(vector.op, f"removes the {what}")


def check_prompt(text: str) -> None:
    """Refuse a prompt that no tokenizer can read.

    Raises:
        UsageError: it is empty, or its bytes are no UTF-8.
    """
    if not text:
        raise UsageError('the prompt is empty: write it in quotes, or "-" to read it from stdin')
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise UsageError("the prompt is not UTF-8: convert it first")


def check_output(path: Path, *suffixes: str) -> None:
    """Refuse an output path before any work is done.

    Raises:
        UsageError: another ending, a missing folder, a folder, or a place that cannot be written.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder: name a file in it")
    if path.suffix not in suffixes:
        raise UsageError(f"{path}: name a file that ends in {' or '.join(suffixes)}")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent} is no folder: make it first, or name another file")
    if path.exists() and not os.access(path, os.W_OK):
        raise UsageError(f"{path} is there and write-protected: name another file")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written: {error.strerror}; name a file somewhere else"
        ) from error


def check_folder(path: Path) -> None:
    """Refuse a folder for output, which need not be there yet, before any work is done.

    Raises:
        UsageError: a file, a missing parent, or a place that cannot be written.
    """
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file: name a folder")
    there = path if path.is_dir() else path.parent
    if not there.is_dir():
        raise UsageError(f"{there} is no folder: make it first, or name another folder")
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written: {error.strerror}; name a folder somewhere else"
        ) from error
