"""`mlxsteer vectors build`: the vectors of many concepts for one model, in one folder."""

from pathlib import Path
from typing import Any

import click

from .options import ModelChoice, check_folder, model_options, parse_band, say, short_name

__all__ = ["command"]


@click.command("build", short_help="Make the vectors of many concepts for one model.")
@click.argument("names", metavar="[CONCEPT]...", nargs=-1)
@click.option("--all", "all_", is_flag=True, help="Every concept of the library.")
@model_options
@click.option(
    "-o",
    "--output",
    metavar="FOLDER",
    required=True,
    type=click.Path(path_type=Path),
    help="Gets a folder per concept, as the library has it.",
)
@click.option(
    "--layers",
    help="Such as 10-19; auto takes those that do most at the cost of strength 1 on a concept's "
    "dev completions.  [default: auto, or the middle third where there are no completions]",
)
@click.option("--anew", is_flag=True, help="Also make the vectors that are there.")
def command(
    names: tuple[str, ...],
    all_: bool,
    model: ModelChoice,
    output: Path,
    layers: str | None,
    anew: bool,
) -> int:
    """Make the calibrated vectors of CONCEPTs (library names or folders) for a model.

    FOLDER/CONCEPT/MODEL.safetensors appears beside the concept's recipe, completions and card,
    ready to be shared. Vectors that are there already are kept, so a build that was broken off goes
    on where it stopped. A concept that fails is told at the end, and the others are made all the
    same.

    \b
    Example:
      mlxsteer vectors build --all -m llama-3.2-1b -o library
      mlxsteer generate "How was your day?" -m llama-3.2-1b -s library/joyful=1
      mlxsteer vectors push --all library --repo you/library
    """
    from ..errors import UsageError
    from ..library import concept, concepts
    from ..progress import bars

    if bool(names) == all_:
        raise UsageError("name one CONCEPT or more, or say --all")
    band = parse_band(layers)
    found = concepts() if all_ else [concept(name) for name in names]
    check_folder(output)
    from ..build import build
    from .extract import summary
    from .sources import load_model

    done = []
    with bars() as progress:
        loaded, tokenizer = load_model(model, progress)
        name = short_name(model.name)
        how: dict[str, Any] = {"layers": band, "anew": anew, "progress": progress}
        for each in build(loaded, tokenizer, found, output, name, **how):
            done.append(each)
            if each.vector is not None:
                kept = " (was there)" if each.kept else ""
                say(f"{len(done)}/{len(found)} {summary(each.vector)}{kept}")
    for each in done:
        if each.vector is not None:
            click.echo(each.path)
        else:
            say(f"error: {each.concept.name}: {' '.join(each.error.split())}")
    return int(any(each.vector is None for each in done))
