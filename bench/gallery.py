"""What every vector of the library makes a model write: the same prompts at strength -1, 0 and 1.

    python bench/gallery.py [MODEL] [--json FILE]

Greedy answers, all strengths of a concept in one batch, on prompts that stand in no recipe; where a
concept has a rule, what it counts in them. Concepts without a vector for MODEL are left out and
named. `make docs` makes docs/gallery.md and the cards of the JSON.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlxsteer

# isort: split
from common import save

from mlxsteer.counting import count, missing
from mlxsteer.generate import generate_many
from mlxsteer.library import Concept, concepts
from mlxsteer.progress import bars
from mlxsteer.steering import Steering
from mlxsteer.vector import Vector, read_vector

PROMPTS = ("Tell me about your morning.", "Should I buy an umbrella?")
STRENGTHS = (-1.0, 0.0, 1.0)
TOKENS = 48


def shown(model: Any, tokenizer: Any, found: Concept, vector: Vector) -> dict[str, Any]:
    """Return what a vector makes the model write: `answers` and `counted`, a list per prompt with
    an entry per strength, and the hash of the vector.
    """
    rows = [(prompt, strength) for prompt in PROMPTS for strength in STRENGTHS]
    written = generate_many(
        model,
        tokenizer,
        [prompt for prompt, _ in rows],
        steering=[Steering((vector, strength)) for _, strength in rows],
        max_tokens=TOKENS,
    )
    texts = list(written)
    n, rule = len(STRENGTHS), found.rule
    answers = [texts[i : i + n] for i in range(0, len(rows), n)]
    counted = None
    if rule is not None and missing(rule) is None:
        counted = [[round(count(rule, text), 4) for text in some] for some in answers]
    return {"vector_sha256": vector.content_sha256, "answers": answers, "counted": counted}


def main(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="smollm2-135m", help="a known model's name")
    parser.add_argument("--json", type=Path, help="write the answers and the machine here")
    options = parser.parse_args(words)
    paths = {found: found.vector_path(options.model) for found in concepts()}
    there = {found: read_vector(path) for found, path in paths.items() if path is not None}
    if not there:
        parser.exit(1, f"no concept has a vector for {options.model}: mlxsteer vectors build\n")
    gallery = {}
    with bars() as progress:
        model, tokenizer = mlxsteer.load(options.model, progress=progress)
        for done, (found, vector) in enumerate(there.items()):
            progress("concepts", done, len(there))
            gallery[found.name] = shown(model, tokenizer, found, vector)
        progress("concepts", len(there), len(there))
    for name, one in gallery.items():
        for prompt, answers in zip(PROMPTS, one["answers"], strict=True):
            for strength, answer in zip(STRENGTHS, answers, strict=True):
                print(f"{name}={strength:g}\t{prompt}\t{' '.join(answer.split())}")
    if left_out := [found.name for found in concepts() if found not in there]:
        print(f"without a vector for {options.model}: {', '.join(left_out)}", file=sys.stderr)
    settings = {"prompts": PROMPTS, "strengths": STRENGTHS, "tokens": TOKENS}
    save(options.json, model, {**settings, "concepts": gallery})


if __name__ == "__main__":
    main(sys.argv[1:])
