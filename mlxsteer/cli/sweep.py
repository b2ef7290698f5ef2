"""`mlxsteer sweep`: a concept in, where and how to steer it out."""

import os
from collections.abc import Sequence

import click

from .options import ModelChoice, model_options, parse_layers
from .reports import Reports, report_options

__all__ = ["command"]


@click.command("sweep")
@click.argument("concept")
@model_options
@click.option(
    "--layers",
    multiple=True,
    metavar="BAND",
    help="Such as 10-19 or 3,5,7, or each for every layer alone; may be repeated.  [default: six "
    "bands, relative to the model's depth]",
)
@click.option(
    "--site",
    "sites",
    default=("resid_post",),
    show_default=True,
    multiple=True,
    metavar="SITES",
    help="Of attn_out, resid_mid, mlp_out and resid_post, with commas or repeated.",
)
@click.option(
    "--method",
    "methods",
    default=("mean_diff",),
    show_default=True,
    multiple=True,
    metavar="METHODS",
    help="Of mean_diff, pca, probe and lda, with commas or repeated.",
)
@click.option(
    "--kl",
    default=("0.5",),
    show_default=True,
    multiple=True,
    metavar="NATS",
    help="Costs at which they are compared, as above; 0.5 is that of strength 1.",
)
@click.option("--read", metavar="WHAT", help="As in mlxsteer extract.")
@click.option("--quick", is_flag=True, help="Fewer prompts and shorter answers: a first look.")
@report_options("the heat map")
def command(
    concept: str,
    model: ModelChoice,
    layers: tuple[str, ...],
    sites: tuple[str, ...],
    methods: tuple[str, ...],
    kl: tuple[str, ...],
    read: str | None,
    quick: bool,
    reports: Reports,
) -> None:
    """Find out where and how to steer CONCEPT (a library name or a folder): bands of layers, sites,
    methods and costs against each other.

    Every cell is brought to the same cost (mean KL) on neutral text and read on the dev split of
    the concept's completions; the best is the one that surely moves them most in text that holds
    together. The test split is left to eval. The table goes to stdout.

    \b
    Examples:
      mlxsteer sweep pirate
      mlxsteer sweep pirate --layers each --kl 0.5,1 --plot pirate.png
      mlxsteer sweep my/concept --site resid_post,mlp_out --method mean_diff,lda
    """
    from ..errors import UsageError
    from ..library import concept as find_concept
    from ..methods import METHODS
    from ..progress import bars
    from ..vector import SITES

    reports.check()
    chosen_sites = _named("--site", ",".join(sites), SITES)
    chosen_methods = _named("--method", ",".join(methods), tuple(METHODS))
    budgets = _numbers(",".join(kl))
    places = [parse_layers(text) for text in layers if text != "each"]
    if concept.endswith((".safetensors", ".gguf", ".f32")):
        raise UsageError(f"{concept} is a vector: a sweep makes its own, so name the concept of it")
    found = find_concept(os.path.expanduser(concept))
    from ..choice import SPLIT
    from ..grid import draw, markdown
    from ..reading import parse_read
    from ..sweep import FULL, QUICK, each_layer, sweep
    from ..trials import check
    from .sources import load_model

    check(found, SPLIT)
    if read is not None:
        parse_read(read)
    with bars() as progress:
        loaded, tokenizer = load_model(model, progress)
        every = each_layer(len(loaded.layers)) if "each" in layers else []
        swept = sweep(
            loaded,
            tokenizer,
            found,
            layers=[*every, *(place for place in places if place)] if layers else None,
            sites=chosen_sites,
            methods=chosen_methods,
            budgets=budgets,
            read=read,
            size=QUICK if quick else FULL,
            progress=progress,
        )
    tables = markdown(swept)
    reports.write(swept.to_json(), tables, lambda path: draw(swept, path))
    click.echo(tables, nl=False)


def _named(option: str, text: str, known: Sequence[str]) -> list[str]:
    """Read names with commas."""
    from ..errors import UsageError

    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise UsageError(f"{option} {name!r} does not exist: use {', '.join(known)}")
    return names


def _numbers(text: str) -> list[float]:
    """Read costs with commas."""
    from ..errors import UsageError

    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--kl {text!r}: use numbers of nats, as in 0.5,1") from None
