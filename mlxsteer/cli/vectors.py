"""`mlxsteer vectors`: list the library, show one vector, convert between file formats; `build` has
a file of its own.
"""

import dataclasses
from pathlib import Path
from typing import Any

import click

from .build import command as build
from .hub import pull, push, search
from .options import (
    Group,
    as_json,
    check_output,
    json_option,
    model_option,
    say,
    short_name,
    strength_one,
)

__all__ = ["command"]


@click.group("vectors", cls=Group, invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """The library of concepts, and vector files; `mlxsteer vectors` alone lists the library.

    \b
    Example:
      mlxsteer vectors show joyful
    """
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_)


command.add_command(build)


@command.command("list", short_help="List the concepts.")
@json_option
def list_(json_: bool = False) -> None:
    """List the concepts, and the models that come with a vector of each."""
    from ..library import concepts

    rows: list[dict[str, Any]] = [
        {
            "name": c.name,
            "positive": c.positive,
            "negative": c.negative,
            "models": sorted(p.stem for p in c.folder.glob("*.safetensors")),
            "license": c.license,
        }
        for c in concepts()
    ]
    if json_:
        return as_json(rows)
    from .listing import table

    table(
        ["concept", "+ (positive strength)", "- (negative strength)", "calibrated for"],
        [[r["name"], r["positive"], r["negative"], ", ".join(r["models"]) or "-"] for r in rows],
    )
    say("Any other model: -s NAME=1 extracts the vector on the spot and keeps it.")


@command.command("show", short_help="Show what a vector is and where it came from.")
@click.argument("vector")
@model_option
@json_option
def show(vector: str, model: str, json_: bool) -> None:
    """Show what VECTOR is and where it came from: a file, or a concept's or repository's for a
    model.
    """
    from ..errors import MlxsteerError
    from ..library import Concept
    from ..progress import bars
    from ..vector import Vector, read_vector
    from .listing import facts
    from .sources import asked_model, find_vector, read_shared

    found = find_vector(vector)
    if isinstance(found, Concept):
        path = found.vector_path(short_name(model))
        if path is None:
            raise MlxsteerError(
                f"the concept {found.name} comes with no vector for {model}: "
                f"mlxsteer extract {vector} -m {model}"
            )
        found = read_vector(path)
    elif not isinstance(found, Vector):
        with bars() as progress:
            found = read_shared(found, asked_model(found, model), progress)
    if json_:
        scales = [float(scale) for scale in found.scales]
        return as_json({**found.record(), "width": found.hidden_size, "scales": scales})
    facts(_described(found))


def _described(vector: Any) -> dict[str, object]:
    """Return what is worth a line on a screen."""
    from ..measured import safe_range, strengths

    lines: dict[str, object] = {
        "name": vector.name,
        "positive": vector.positive,
        "negative": vector.negative,
        "edit": f"{vector.op} at {vector.site}, phase {vector.phase}",
        "layers": " ".join(map(str, vector.layers)),
        "scales": " ".join(f"{s:.3g}" for s in vector.scales),
        "targets": " ".join(f"{t:.3g}" for t in (() if vector.targets is None else vector.targets)),
        "width": vector.hidden_size,
        "model": vector.model or "",
        "method": vector.method,
        "license": vector.license,
        "sha256": vector.content_sha256,
    }
    if vector.model is not None:
        packed = vector.model.quantization or "unknown"
        lines["model"] = f"{vector.model}, quantization {packed}"
    if vector.n_pairs:
        lines["method"] = f"{vector.method} of {vector.n_pairs} pairs, {vector.token}"
    lines["strength 1"] = f"{strength_one(vector)}: not calibrated"
    if vector.calibration is not None:
        kl, tokens = (vector.calibration.get(key) for key in ("kl", "tokens"))
        nats = f"{kl:.2f}" if isinstance(kl, float) else kl
        does = "" if vector.op == "add" else f"{strength_one(vector)} and "
        lines["strength 1"] = f"{does}costs {nats} nats per token, on {tokens} neutral tokens"
    if (safe := safe_range(vector)) is not None:
        lines["text holds"] = f"at strengths from {strengths(safe)}"
    return {key: value for key, value in lines.items() if value != ""}


@command.command("diff", short_help="Compare two vectors layer by layer.")
@click.argument("a")
@click.argument("b")
@json_option
def diff(a: str, b: str, json_: bool) -> None:
    """Compare the vector files A and B: cosine and norms per layer, and what else differs."""
    from ..compare import diff as compared
    from .sources import read_file

    found = compared(read_file(a), read_file(b))
    if json_:
        return as_json(dataclasses.asdict(found))
    from .listing import table

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.4g}"

    table(
        ["layer", "cosine", "norm of A", "norm of B"],
        [
            [str(row.layer), number(row.cosine), number(row.norm_a), number(row.norm_b)]
            for row in found.layers
        ],
    )
    if found.fields:
        say(f"also different: {', '.join(found.fields)}")


@command.command("convert", short_help="Convert between vector files.")
@click.argument("source")
@click.argument("output", metavar="TARGET", type=click.Path(path_type=Path))
@click.option("--width", type=int, metavar="D", help="Of the model, for a ds4 .f32 file.")
@click.option("--site", help="Where a ds4 .f32 file acts: mlp_out or attn_out.")
@click.option("--feature", type=int, metavar="N", help="Which feature of an SAE file.")
@click.option("--layer", type=int, metavar="N", help="Where an SAE reads, if it does not say so.")
@click.option(
    "--op",
    default="add",
    show_default=True,
    help="What a feature does: add, project (1 removes), clamp or cap (1 holds the target).",
)
@click.option(
    "--target", type=float, metavar="X", help="Of clamp and cap, in the feature's own units."
)
@click.option(
    "--n-layers", type=int, metavar="N", help="Of the model, for a .f32, if SOURCE does not say it."
)
@click.option(
    "--model-hint",
    default="",
    metavar="TYPE",
    help="The model type that a .gguf names.  [default: that of the vector's model]",
)
def convert(
    source: str,
    output: Path,
    width: int | None,
    site: str | None,
    feature: int | None,
    layer: int | None,
    op: str,
    target: float | None,
    n_layers: int | None,
    model_hint: str,
) -> None:
    """Convert SOURCE to TARGET: .safetensors (ours), .gguf (llama.cpp's control vectors) or .f32
    (ds4's directions). SOURCE may also be an SAE's .safetensors or .npz, with --feature.

    A .gguf keeps what strength 1 adds, a .f32 what it projects out, and nothing of their origin.

    \b
    Example:
      mlxsteer vectors convert joyful-smollm2-135m.safetensors joyful.gguf
      mlxsteer vectors convert sae.safetensors bridge.safetensors --feature 42
      mlxsteer vectors convert x.npz f.safetensors --feature 4 --op cap --target 8
    """
    from ..errors import UsageError
    from ..interop import write_control_vector, write_ds4
    from .sources import read_file

    check_output(output, ".safetensors", ".gguf", ".f32")
    for flag, value, suffix in (
        ("--n-layers", n_layers, ".f32"),
        ("--model-hint", model_hint or None, ".gguf"),
    ):
        if value is not None and output.suffix != suffix:
            raise UsageError(f"{flag} {value} is for a {suffix} only: leave it out")
    vector = read_file(
        source, hidden_size=width, feature=feature, layer=layer, op=op, target=target, site=site
    )
    if output.suffix == ".safetensors":
        vector.save(output)
    elif output.suffix == ".f32":
        write_ds4(vector, output, n_layers)
    elif vector.model is None and not model_hint:
        raise UsageError(f"{source} does not say its model's type: add --model-hint, such as llama")
    else:
        write_control_vector(vector, output, model_hint)
    click.echo(output)


for _command in (push, pull, search):
    command.add_command(_command)
