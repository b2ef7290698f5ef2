"""`mlxsteer eval`: a vector in, the evidence for it out."""

import json
import os
from pathlib import Path

import click

from .options import ModelChoice, check_output, model_options

__all__ = ["command"]


@click.command("eval")
@click.argument("vector")
@model_options
@click.option("--concept", help="Judge VECTOR by this concept.  [default: the one beside it]")
@click.option(
    "--split",
    type=click.Choice(["test", "dev"]),
    default="test",
    show_default=True,
    help="dev while anything is still being chosen; test once.",
)
@click.option("--quick", is_flag=True, help="Fewer prompts, nulls and questions: a first look.")
@click.option("--json", "json_", type=click.Path(path_type=Path), help="Write all of it here.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write the tables here.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw effect against strength here.")
def command(
    vector: str,
    model: ModelChoice,
    concept: str | None,
    split: str,
    quick: bool,
    json_: Path | None,
    markdown: Path | None,
    plot: Path | None,
) -> None:
    """Judge VECTOR (a concept of the library, a folder or a vector file) without a judge model.

    The same held-out prompts are answered unsteered, asked for the concept in words, steered and
    both, beside vectors of the same cost that mean something else. Tables go to stdout; a vector
    that fails is no error.

    \b
    Examples:
      mlxsteer eval pirate
      mlxsteer eval mine.safetensors --concept my/concept --plot mine.png
    """
    from ..library import Concept
    from ..library import concept as find_concept
    from ..progress import bars
    from ..report import check_drawing
    from .sources import beside, find_vector, load_model, others_at_hand, steering_of

    for path, suffix in ((json_, ".json"), (markdown, ".md"), (plot, ".png")):
        if path is not None:
            check_output(path, suffix)
    if plot is not None:
        check_drawing()
    found = find_vector(vector)
    if concept is not None:
        judged_by = find_concept(concept)
    else:
        judged_by = found if isinstance(found, Concept) else beside(found, vector)
    from ..evaluate import FULL, QUICK, evaluate
    from ..evidence import draw
    from ..evidence import markdown as tables
    from ..trials import check

    check(judged_by, split)
    with bars() as progress:
        loaded, tokenizer = load_model(model, progress)
        steering = steering_of([(found, 1.0)], loaded, tokenizer, model.name, progress)
        evidence = evaluate(
            loaded,
            tokenizer,
            steering.terms[0].vector,
            judged_by,
            others=others_at_hand(judged_by, loaded, model.name),
            split=split,
            size=QUICK if quick else FULL,
            progress=progress,
        )
    text = tables(evidence)
    if json_ is not None:
        _write(json_, json.dumps(evidence.to_json(), indent=2, ensure_ascii=False) + "\n")
    if markdown is not None:
        _write(markdown, text)
    if plot is not None:
        draw(evidence, plot)
    click.echo(text, nl=False)


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
