"""`mlxsteer models`: the models that are known by name, and what is known of them."""

import dataclasses
from typing import Any

import click

from .options import Group, as_json, json_option, say

__all__ = ["command"]


@click.group("models", cls=Group, invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """The models that are known by name; `mlxsteer models` alone lists them.

    \b
    Example:
      mlxsteer models show llama-3.2-1b
    """
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_)


@command.command("list")
@json_option
def list_(json_: bool = False) -> None:
    """List the known models."""
    from ..library import known_models

    models = known_models()
    if json_:
        return as_json([dataclasses.asdict(m) for m in models])
    from .listing import table

    table(
        ["model", "family", "layers", "width", "memory", "source"],
        [
            [m.name, m.family, str(m.layers), str(m.width), f"{m.memory_gb:g} GB", _source(m)]
            for m in models
        ],
    )
    say("Any Hub id or folder that mlx-lm loads works too, .gguf files of these families: -m NAME")


@command.command("show")
@click.argument("name")
@click.option("--test", is_flag=True, help="Load it, and test that edits act where they should.")
@json_option
def show(name: str, test: bool, json_: bool) -> None:
    """Show what is known of the model NAME.

    With --test NAME may be whatever -m takes.

    \b
    Examples:
      mlxsteer models show llama-3.2-1b
      mlxsteer models show mlx-community/gemma-2-2b-it-4bit --test
    """
    from ..errors import MlxsteerError
    from ..library import known_model, known_models, near
    from .listing import facts

    model = known_model(name)
    if model is None and not test:
        hint = near(name, (m.name for m in known_models()))
        raise MlxsteerError(
            f"no model is known as {name!r}{hint}; --test loads and tests any folder or Hub id"
        )
    values = {} if model is None else dataclasses.asdict(model)
    if test:
        values |= _tested(name)
    if json_:
        return as_json(values)
    hub = values.pop("hub", [])
    values |= {"hub" if len(hub) == 1 else f"hub {i}": one for i, one in enumerate(hub, 1)}
    facts({k: _line(v) for k, v in values.items() if v not in (None, "", ())})


def _tested(name: str) -> dict[str, Any]:
    from ..progress import bars
    from ..selftest import report_of
    from .options import ModelChoice
    from .sources import load_model

    with bars() as progress:
        model, _ = load_model(ModelChoice(name, None, None, None), progress)
    report = report_of(model)
    return {"definition": type(model).__module__, "self_test": str(report)}


def _source(model: Any) -> str:
    return f"PyPI {model.package.name}" if model.package is not None else model.hub[0].repo


def _line(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items() if v)
    if isinstance(value, (list, tuple)):
        return "; ".join(map(_line, value))
    return str(value)
