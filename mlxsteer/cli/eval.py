"""`mlxsteer eval`: a vector in, the evidence for it out."""

import click

from .options import ModelChoice, model_options
from .reports import Reports, report_options

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
@report_options("effect against strength")
def command(
    vector: str,
    model: ModelChoice,
    concept: str | None,
    split: str,
    quick: bool,
    reports: Reports,
) -> None:
    """Judge VECTOR (a concept, its folder, a file, or one on the Hub) without a judge model.

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
    from .sources import beside, find_vector, load_model, others_at_hand, steering_of

    reports.check()
    found = find_vector(vector)
    if concept is not None:
        judged_by = find_concept(concept)
    else:
        judged_by = found if isinstance(found, Concept) else beside(found, vector)
    from ..evaluate import FULL, QUICK, evaluate
    from ..evidence import draw, markdown
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
    tables = markdown(evidence)
    reports.write(evidence.to_json(), tables, lambda path: draw(evidence, path))
    click.echo(tables, nl=False)
