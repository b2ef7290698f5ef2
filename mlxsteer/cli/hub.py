"""`mlxsteer vectors push`, `pull` and `search`: vectors on the Hugging Face Hub."""

from dataclasses import asdict
from pathlib import Path

import click

from .options import as_json, json_option, model_option, say

__all__ = ["pull", "push", "search"]


@click.command("push", short_help="Share vectors on the Hub.")
@click.argument("source", required=False)
@click.option("--repo", required=True, metavar="OWNER/NAME", help="Where to, made if it is new.")
@click.option(
    "--all",
    "all_",
    is_flag=True,
    help="The whole library, or every concept of the folder SOURCE, and a collection of it.",
)
@click.option("--private", is_flag=True, help="For a new repository: nobody else sees it.")
@click.option("--revision", metavar="BRANCH", help="Another branch than main.")
@click.option("--create-pr", is_flag=True, help="As a pull request.")
@click.option("--license", "license_", default="", metavar="ID", help="Of a vector without one.")
@click.option(
    "--base-model",
    multiple=True,
    metavar="OWNER/NAME",
    help="Also show it under this model; needed for a model that is not from the Hub.",
)
@json_option
def push(
    source: str | None,
    repo: str,
    all_: bool,
    private: bool,
    revision: str | None,
    create_pr: bool,
    license_: str,
    base_model: tuple[str, ...],
    json_: bool,
) -> None:
    """Share SOURCE on the Hugging Face Hub: a concept, its folder, or a .safetensors file.

    The repository gets a card, the vectors with a GGUF beside each for llama.cpp, the contrast
    data and what was measured, as one commit. What is there already is not sent again. The token
    is that of `hf auth login` or HF_TOKEN.

    \b
    Example:
      mlxsteer vectors push joyful --repo you/joyful
      mlxsteer vectors push --all --repo you/vectors --private
      mlxsteer vectors push --all FOLDER --repo you/vectors
    """
    import re

    from ..bundle import Bundle, collect, of_concept, of_vector
    from ..errors import UsageError
    from ..hub_ref import REPO
    from ..library import Concept
    from ..progress import bars
    from ..publish import check_models
    from ..publish import push as pushed_to
    from ..vector import Vector
    from .sources import find_vector, library_at

    if source is None and not all_:
        raise UsageError("name one thing to push, a concept, folder or file, or say --all")
    for name in (repo, *base_model):
        if not re.fullmatch(REPO, name):
            raise UsageError(f"{name!r} is no Hub id: write owner/name")
    bundles: list[Bundle]
    if all_:
        bundles = [of_concept(concept, base_model) for concept in library_at(source)]
    else:
        found = find_vector(source or "")
        if isinstance(found, Concept):
            bundles = [of_concept(found, base_model)]
        elif isinstance(found, Vector):
            bundles = [of_vector(found, license_, base_model)]
        else:
            raise UsageError(f"{source} is on the Hub already: pull it into a folder first (-o)")
    if license_ and (all_ or isinstance(found, Concept)):
        raise UsageError(f"--license {license_} is for a file: a concept's is in its vector.toml")
    files = collect(bundles, repo, library=all_)
    check_models(base_model)
    with bars() as progress:
        done = pushed_to(
            files,
            repo,
            private=private,
            revision=revision,
            create_pr=create_pr,
            collection="mlxsteer vectors" if all_ and not create_pr else "",
            progress=progress,
        )
    if json_:
        return as_json({"repo": repo, **asdict(done)})
    say(f"{len(done.changed)} of {len(files)} files changed, commit {done.commit}")
    click.echo(done.pull_request or done.url)


@click.command("pull", short_help="Fetch vectors from the Hub.")
@click.argument("ref", metavar="OWNER/NAME[@REVISION][:CONCEPT]")
@model_option
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Copy all of it into this new folder, vectors of every model and contrast data: of one "
    "concept, or of a library, which can be pushed again.",
)
@json_option
def pull(ref: str, model: str, output: Path | None, json_: bool) -> None:
    """Fetch a vector from the Hugging Face Hub into its cache, verified; `-s` and all commands
    that take a vector do the same, and need no connection afterwards.

    REVISION is a branch, tag or commit. Of a repository that was not pushed by mlxsteer, CONCEPT
    is the name of a .gguf or .safetensors file. Pickles are never fetched.

    \b
    Example:
      mlxsteer vectors pull you/vectors@v1:joyful
      mlxsteer generate "How was your day?" -s you/vectors@v1:joyful=1
    """
    from ..errors import UsageError
    from ..hub import open_repo
    from ..hub_ref import HubRef
    from ..progress import bars
    from .sources import asked_model, read_shared

    parsed = HubRef.parse(ref)
    if parsed is None:
        raise UsageError(f"{ref!r} is no repository: write owner/name[@revision][:concept]")
    with bars() as progress:
        shared = open_repo(parsed, progress, whole=output is not None)
        wanted = asked_model(shared, model)
        if output is not None:
            if not shared.ours:
                read_shared(shared, wanted, progress)
            files = shared.save(output, progress)
            place: Path = output
        else:
            entry = shared.choose(wanted)
            place = shared.fetch(entry, progress)
            read_shared(shared, wanted, progress)
            files = [entry.file]
    if json_:
        where = {"repo": parsed.repo, "commit": shared.snapshot.commit}
        return as_json({**where, "path": str(place), "files": files})
    say(f"commit {shared.snapshot.commit}")
    click.echo(place)


@click.command("search", short_help="Find vectors on the Hub.")
@click.argument("text", default="")
@click.option("-m", "--model", default="", metavar="MODEL", help="Only for this model.")
@json_option
def search(text: str, model: str, json_: bool) -> None:
    """Find vectors on the Hugging Face Hub: TEXT is in the name of a repository or of a vector in
    it, or in a tag.

    Plain repositories of llama.cpp's control vectors are found, too. To use one, name the
    repository and the file, OWNER/NAME:FILE.

    \b
    Example:
      mlxsteer vectors search joyful -m smollm2-135m
    """
    from ..catalog import search as found_on_hub
    from .listing import table

    found = found_on_hub(text, model)
    if json_:
        return as_json([asdict(one) for one in found])
    table(
        ["repository", "kind", "for", "vectors", "downloads", "updated"],
        [
            [
                one.repo,
                "mlxsteer" if one.ours else "plain",
                "-" if not one.base_models else one.base_models[0] + _more(one.base_models),
                str(len(one.files)),
                str(one.downloads),
                one.updated or "-",
            ]
            for one in found
        ],
    )
    if not found:
        say("nothing was found: leave out a word, or the model")


def _more(names: tuple[str, ...]) -> str:
    return f" +{len(names) - 1}" if len(names) > 1 else ""
