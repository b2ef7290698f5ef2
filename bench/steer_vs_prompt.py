"""You could simply ask: steering against asking in words, and both.

    python bench/steer_vs_prompt.py [MODEL] [--concepts pirate terse] [--json FILE]

For every concept of the library that has a vector for the model (for all, if none has): what
asking, steering at 1 and both do on completions that were written beforehand (from its
evaluation.json where it has one, else on the dev split); what is left of either behind more and
more turns of neutral talk; and the prompt tokens and the time to the first token that steering
saves. Then a style guide in context, against the vector made of it.

With --json every concept is saved when it is done, and one that is there and was measured on the
same data is not measured again; what an evaluation says is taken over anew. `make docs` writes
docs/prompting.md from the file.
"""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

from common import parser, save
from prompting import (
    PROMPTS,
    conversation,
    digest,
    evaluated,
    first_token,
    measure,
    middle,
    neutral_turns,
    on_dev,
    words,
)
from prompting_page import said_of, said_of_guide
from style_guide import contrasts, guide, guide_key, guide_pairs, measure_guide

import mlxsteer
from mlxsteer.bench.machine import machine
from mlxsteer.cli.sources import others_at_hand, steering_of
from mlxsteer.errors import MlxsteerError
from mlxsteer.library import Concept, concepts
from mlxsteer.library import concept as find_concept
from mlxsteer.neutral import Neutral
from mlxsteer.progress import Progress, bars
from mlxsteer.steering import Steering
from mlxsteer.trials import check
from mlxsteer.vector import Vector

GUIDE = "style-guide"
TURNS = (0, 4, 12)
SECONDS = 4.0  # for the times of one concept


def main() -> None:
    reader = parser(__doc__)
    reader.set_defaults(seconds=SECONDS)
    help_ = f"these only; {GUIDE} is the style guide"
    reader.add_argument("--concepts", nargs="+", metavar="NAME", help=help_)
    reader.add_argument("--anew", action="store_true", help="measure what is there, too")
    options = reader.parse_args()
    logging.basicConfig(format="%(message)s")
    shipped = [each for each in concepts() if each.vector_path(options.model) is not None]
    names = options.concepts or [*(each.name for each in shipped or concepts()), GUIDE]
    chosen = [find_concept(name) for name in names if name != GUIDE]
    with bars() as progress:
        model, tokenizer = mlxsteer.load(options.model, progress=progress)
        figures = kept(options.json, model)
        figures["turns"] = list(TURNS)
        done = figures.setdefault("concepts", {})
        for i, each in enumerate(chosen):
            progress("concepts", i, len(chosen))
            named = [(each, 1.0)]
            steering = steering_of(named, model, tokenizer, options.model, progress)
            vector = steering.terms[0].vector
            key = concept_key(each, vector, model)
            if options.anew or done.get(each.name, {}).get("key") != key:
                found = one_concept(model, tokenizer, each, vector, options.seconds, progress)
                done[each.name] = {"key": key, **measured_on(), **found}
            entry = done[each.name]
            entry["judged"] = evaluated(each, vector, model) or (
                was
                if (was := entry.get("judged")) is not None and was["split"] == "dev"
                else on_dev(model, tokenizer, each, vector)
            )
            save(options.json, model, figures)
            print(said_of(each.name, done[each.name]), flush=True)
        progress("concepts", len(chosen), len(chosen))
        if GUIDE not in names:
            return
        than = dataclasses.replace(concepts()[0], name=GUIDE)
        others = others_at_hand(than, model, options.model)
        key = guide_key(model, others)
        if options.anew or figures.get("guide", {}).get("key") != key:
            found = measure_guide(
                model,
                tokenizer,
                guide(),
                guide_pairs(),
                contrasts(guide()),
                others,
                neutral=Neutral.kept(model, tokenizer, progress=progress),
                seconds=5 * options.seconds,
                progress=progress,
            )
            figures["guide"] = {"key": key, **measured_on(), **found}
            save(options.json, model, figures)
        print(said_of_guide(figures["guide"]))


def measured_on() -> dict[str, Any]:
    """Return chip and commit: a file may hold what several machines measured."""
    found = machine()
    return {name: found[name] for name in ("chip", "commit")}


def kept(path: Path | None, model: Any) -> dict[str, Any]:
    """Return the figures of an earlier run on this model.

    Raises:
        MlxsteerError: the file is of another model.
    """
    if path is None or not path.exists():
        return {}
    record = json.loads(path.read_text())
    if record["model"]["repo"] != model.source.repo:
        raise MlxsteerError(f"{path} is of {record['model']['repo']}: choose another file")
    figures: dict[str, Any] = record["figures"]
    return figures


def concept_key(concept: Concept, vector: Vector, model: Any) -> str:
    """Return the hash of all that is measured here of a concept."""
    recipe, completions = check(concept, "dev")
    said = [recipe.positive, recipe.place]
    answers = [[one.prompt, one.positive, one.negative] for one in completions]
    turns = [[turn.user, turn.assistant] for turn in neutral_turns()]
    return digest([repr(model.source), vector.content_sha256, said, answers, turns, TURNS, PROMPTS])


def one_concept(
    model: Any,
    tokenizer: Any,
    concept: Concept,
    vector: Vector,
    seconds: float,
    progress: Progress,
) -> dict[str, Any]:
    """Return what is measured here of a concept; what it is judged by stands in its evaluation."""
    recipe, completions = check(concept, "dev")
    scores = measure(model, tokenizer, concept, vector, neutral_turns(), TURNS, progress=progress)
    prompt = middle(tokenizer, completions)
    return {
        "vector_sha256": vector.content_sha256,
        "layers": list(vector.layers),
        "words": words(tokenizer, recipe.positive),
        "scores": scores,
        "first_token": first_token(
            model,
            tokenizer,
            conversation(recipe, (), prompt),
            conversation(None, (), prompt),
            Steering((vector, 1.0)),
            seconds,
        ),
    }


if __name__ == "__main__":
    main()
