"""How a concept is asked for and steered to in a conversation, and what either does: the parts of
the study `steer_vs_prompt.py`.

A conversation opens with the words that ask, if any do, goes on for some turns of neutral talk, and
ends with a held-out prompt, whose two committed answers are read. The score is that of
`mlxsteer.scoring`: nats per token of the positive over the negative answer. Figures are per prompt,
`[N]`; intervals are made of them when they are shown.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlxsteer.bench.measure import Block, Patience, Ratio, interleaved
from mlxsteer.claims import condition, records
from mlxsteer.completions import Completion
from mlxsteer.errors import MlxsteerError
from mlxsteer.evidence import SCHEMA
from mlxsteer.forced import Forced
from mlxsteer.generate import stream_generate
from mlxsteer.library import Concept
from mlxsteer.progress import Progress, silent
from mlxsteer.prompts import Message, Recipe, Side, messages, render
from mlxsteer.scoring import LogOdds, answered, end_of_turn, prompted
from mlxsteer.state import OFF
from mlxsteer.steering import Steering
from mlxsteer.tables import read_rows
from mlxsteer.trials import check
from mlxsteer.values import canonical
from mlxsteer.vector import Vector

__all__ = [
    "ARMS",
    "PROMPTS",
    "Turn",
    "conversation",
    "evaluated",
    "first_token",
    "measure",
    "neutral_turns",
    "on_dev",
]

FOLDER = Path(__file__).parent
PROMPTS = 6  # of a concept in a conversation
# of this study -> of the conditions that `mlxsteer eval` writes
ARMS = {
    "plain": (0.0, False),
    "asked": (0.0, True),
    "steered": (1.0, False),
    "both": (1.0, True),
}


@dataclass(frozen=True)
class Turn:
    """What a user said, and a neutral answer."""

    user: str
    assistant: str


def neutral_turns() -> tuple[Turn, ...]:
    """Return the turns of `conversation.jsonl`."""
    rows = read_rows(FOLDER / "conversation.jsonl", ("user", "assistant"))
    return tuple(Turn(row["user"], row["assistant"]) for _, row in rows)


def some_turns(name: str, turns: Sequence[Turn], count: int) -> list[Turn]:
    """Return `count` turns in a row; where they begin depends on the name, so that not every
    concept meets the same talk.
    """
    start = int(digest(name)[:8], 16)
    return [turns[(start + i) % len(turns)] for i in range(count)]


def conversation(
    recipe: Recipe | None, turns: Sequence[Turn], prompt: str, *, again: bool = False
) -> list[Message]:
    """Return a conversation that ends with `prompt`.

    Args:
        recipe: its positive instruction is given where the conversation begins; None gives none.
        again: the instruction also stands behind the last prompt.
    """
    said: list[Message] = []
    for turn in turns:
        said.append({"role": "user", "content": turn.user})
        said.append({"role": "assistant", "content": turn.assistant})
    last = f"{prompt} {recipe.positive}" if recipe is not None and again else prompt
    said.append({"role": "user", "content": last})
    if recipe is None:
        return said
    return [*messages(prompted(recipe, said[0]["content"])), *said[1:]]


def read_for(
    model: Any, tokenizer: Any, sides: Sequence[Side], answers: Sequence[Completion], first: int
) -> Forced:
    """Return both answers behind each side, ready to be read."""
    end = end_of_turn(tokenizer)
    texts = [
        answered(model, tokenizer, side, answer, end)
        for side, one in zip(sides, answers, strict=True)
        for answer in (one.positive, one.negative)
    ]
    return Forced(model, texts, first)


def odds(texts: Forced, steering: Steering) -> list[float]:
    """Return the score of every prompt under a steering."""
    both = texts.log_probs(steering).reshape(-1, 2)
    return floats(both[:, 0] - both[:, 1])


def measure(
    model: Any,
    tokenizer: Any,
    concept: Concept,
    vector: Vector,
    turns: Sequence[Turn],
    counts: Sequence[int],
    *,
    prompts: int = PROMPTS,
    progress: Progress = silent,
) -> dict[str, dict[str, list[float]]]:
    """Return the scores on dev completions by number of turns and arm; asked again is read with the
    most turns only.

    Args:
        prompts: of the dev split, at most, spread over all.

    Raises:
        MlxsteerError: a concept without recipe or completions.
    """
    recipe, completions = check(concept, "dev")
    pick = np.linspace(0, len(completions) - 1, min(prompts, len(completions))).astype(int)
    completions = [completions[i] for i in pick]
    first = vector.layers[0]
    found: dict[str, dict[str, list[float]]] = {}
    for done, count in enumerate(counts):
        progress(concept.name, done, len(counts))
        some = some_turns(concept.name, turns, count)

        def arm(recipe: Recipe | None, again: bool = False, some: Any = some) -> Forced:
            sides = [conversation(recipe, some, one.prompt, again=again) for one in completions]
            return read_for(model, tokenizer, sides, completions, first)

        plain = arm(None)
        here = {"plain": odds(plain, OFF), "steered": odds(plain, Steering((vector, 1.0)))}
        here["asked"] = odds(arm(recipe), OFF)
        if 0 < count == max(counts):
            here["asked again"] = odds(arm(recipe, again=True), OFF)
        found[str(count)] = here
    progress(concept.name, len(counts), len(counts))
    return found


def on_dev(model: Any, tokenizer: Any, concept: Concept, vector: Vector) -> dict[str, Any]:
    """Return what a concept without an evaluation is judged by: the scores of all arms on all dev
    completions.
    """
    recipe, completions = check(concept, "dev")
    scores: dict[str, list[float]] = {}
    for asked in (False, True):
        odds = LogOdds(
            model,
            tokenizer,
            completions,
            recipe=recipe if asked else None,
            first=vector.layers[0],
        )
        for arm in (arm for arm, key in ARMS.items() if key[1] == asked):
            scores[arm] = floats(odds(Steering((vector, ARMS[arm][0]))))
    return {"split": "dev", "scores": scores, "detected": dict.fromkeys(ARMS)}


def evaluated(concept: Concept, vector: Vector, model: Any) -> dict[str, Any] | None:
    """Return what `mlxsteer eval` found on the test split, which is not read again; None where the
    concept has no evaluation for this model.

    Raises:
        MlxsteerError: the evaluation is of another vector, split or version.
    """
    path = concept.folder / "evaluation.json"
    if not path.is_file():
        return None
    read = records(json.loads(path.read_text(encoding="utf-8")))
    ours = [r for r in read if (r["schema"], r["model"]) == (SCHEMA, model.source.repo)]
    if not ours:
        return None
    wanted = "test", vector.content_sha256
    record = next((r for r in ours if (r["split"], r["vector_sha256"]) == wanted), None)
    if record is None:
        raise MlxsteerError(
            f"{path} is not of the test split and this vector: write it anew with "
            f"mlxsteer eval {concept.name} --json {path}"
        )
    arms = {arm: condition(record, *key) for arm, key in ARMS.items()}
    return {
        "split": record["split"],
        "scores": {arm: floats(c["scores"]) for arm, c in arms.items()},
        "detected": {arm: c["detected"] for arm, c in arms.items()},
    }


def first_token(
    model: Any, tokenizer: Any, asked: Side, plain: Side, steering: Steering, seconds: float
) -> dict[str, Any]:
    """Return the prompt tokens of asking and of steering, and the time to the first token of
    steering against that of asking: a ratio above 1 says that steering is there sooner.
    """
    long, short = render(tokenizer, asked), render(tokenizer, plain)

    def until(tokens: list[int], steering: Steering) -> Block:
        def run() -> None:
            for _ in stream_generate(model, tokenizer, tokens, steering=steering, max_tokens=1):
                pass

        return Block(run)

    patience = Patience(seconds=seconds, rounds=5)
    found: Ratio = interleaved(until(short, steering), until(long, OFF), patience)
    tokens = {"asked_tokens": len(long), "steered_tokens": len(short)}
    return {**tokens, **dataclasses.asdict(found)}


def middle(tokenizer: Any, completions: Sequence[Completion]) -> str:
    """Return the prompt of median length."""
    ranked = sorted((len(render(tokenizer, one.prompt)), one.prompt) for one in completions)
    return ranked[len(ranked) // 2][1]


def words(tokenizer: Any, text: str) -> int:
    """Return the tokens of a text by itself."""
    return len(tokenizer.encode(text, add_special_tokens=False))


def digest(value: Any) -> str:
    """Return the hash of a plain JSON value: what was measured on other data has another."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def floats(values: np.ndarray | Sequence[float]) -> list[float]:
    """Return what is written of an array: four places."""
    return [round(float(value), 4) for value in values]
