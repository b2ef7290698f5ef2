"""`mlxsteer extract`: contrast data in, a calibrated vector file out."""

from pathlib import Path
from typing import Any

import click

from .options import (
    ModelChoice,
    check_output,
    model_options,
    parse_band,
    say,
    short_name,
    strength_one,
    whole_number,
)

__all__ = ["command", "summary"]


@click.command("extract")
@click.argument("concept", required=False)
@click.option(
    "--pairs",
    type=click.Path(path_type=Path),
    help='Instead of CONCEPT: JSON lines of {"positive": ..., "negative": ...}.',
)
@model_options
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The vector file.  [default: ./NAME-MODEL.safetensors]",
)
@click.option("--name", help="Of the vector.  [default: the concept's or the file's]")
@click.option("--method", default="mean_diff", show_default=True, help="How it is found.")
@click.option(
    "--site",
    default="resid_post",
    show_default=True,
    help="Where to read and steer: attn_out, resid_mid, mlp_out or resid_post.",
)
@click.option(
    "--layers",
    help="Such as 10-19 or 3,5,7; auto takes those that do most at the cost of strength 1 on "
    "CONCEPT's dev completions.  [default: middle, the middle third]",
)
@click.option(
    "--read",
    metavar="WHAT",
    help="Of each side: last (prompt token), a token's index, content (its last token) or "
    "response (its mean).  [default: response of pairs that bring one, last of others]",
)
@click.option(
    "--response-tokens",
    default=32,
    show_default=True,
    metavar="N",
    callback=whole_number(1),
    help="Of the answers that --read response lets the model write.",
)
@click.option(
    "--op",
    default="add",
    show_default=True,
    help="How it will steer: add, project (1 removes), clamp or cap (1 holds the target).",
)
@click.option(
    "--remove-negative-mean",
    is_flag=True,
    help="Take out of the direction what the negative side shares with it.",
)
@click.option("--no-calibrate", is_flag=True, help="Leave the scale that the data gave.")
def command(
    concept: str | None,
    pairs: Path | None,
    model: ModelChoice,
    output: Path | None,
    name: str | None,
    method: str,
    site: str,
    layers: str | None,
    read: str | None,
    response_tokens: int,
    op: str,
    remove_negative_mean: bool,
    no_calibrate: bool,
) -> None:
    """Find the direction of CONCEPT (a library name or a folder) in a model and write it to a
    file, calibrated: strength 1 costs half a nat per token.

    \b
    Examples:
      mlxsteer extract pirate
      mlxsteer extract --pairs my/pairs.jsonl -m llama-3.2-1b -o mine.safetensors
    """
    from ..errors import UsageError
    from ..library import concept as find_concept
    from ..methods import METHODS
    from ..progress import bars
    from ..prompts import read_pairs
    from ..vector import OPS, SITES

    for key, value, known in (("site", site, SITES), ("method", method, METHODS), ("op", op, OPS)):
        if value not in known:
            raise UsageError(f"--{key} {value!r} does not exist: use {', '.join(known)}")
    chosen = parse_band(layers)
    data: Any
    if concept is not None and pairs is None:
        data = found = find_concept(concept)
        title = name or found.name
    elif pairs is not None and concept is None:
        data, title = read_pairs(pairs), name or pairs.stem
    else:
        raise UsageError("give either a CONCEPT or --pairs FILE")
    if not title.strip() or not title.isprintable():
        raise UsageError(f"--name {title!r}: use a name of one printable line")
    if chosen == "auto":
        if op != "add":
            raise UsageError(f"--layers auto goes by what adding does: name those for --op {op}")
        from ..choice import SPLIT
        from ..trials import check

        check(data if concept is not None else None, SPLIT)
    path = output or Path(f"{title}-{short_name(model.name)}.safetensors")
    check_output(path, ".safetensors")
    from ..extract import extract
    from ..reading import parse_read
    from .sources import load_model

    if read is not None:
        parse_read(read)
    with bars() as progress:
        loaded, tokenizer = load_model(model, progress)
        vector = extract(
            loaded,
            tokenizer,
            data,
            name=title,
            method=method,
            site=site,
            layers=chosen,
            read=read,
            response_tokens=response_tokens,
            op=op,
            remove_negative_mean=remove_negative_mean,
            calibrate=not no_calibrate,
            progress=progress,
        )
    vector.save(path)
    say(summary(vector))
    click.echo(path)


def summary(vector: Any) -> str:
    """Return what a vector is, in one line."""
    from ..grid import spelled
    from ..measured import safe_range, strengths

    if vector.calibration is None:
        meaning = f"not calibrated, strength 1 {strength_one(vector)}"
    else:
        c = vector.calibration
        does = "" if vector.op == "add" else f"{strength_one(vector)} and "
        meaning = f"strength 1 {does}costs {c['kl']:.2f} nats per token, on {c['tokens']} tokens"
        if (safe := safe_range(vector)) is not None:
            meaning += f"; text holds from {strengths(safe)}"
    layers = "layer" if len(vector.layers) == 1 else "layers"
    where = f"{spelled(vector.layers)}{' (chosen)' if 'layers' in vector.evidence else ''}"
    return f"{vector.name}: {vector.op} at {vector.site}, {layers} {where}; {meaning}"
