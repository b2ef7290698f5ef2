"""A style guide in one vector: a part of the study `steer_vs_prompt.py`.

The vector is the mean difference of what the model reads with `style_guide.md` as its system
message and without it, extracted and calibrated as every other: at the last token of a prompt
(`last`), or over answers that are the same on both sides (`response`). It is held against the guide
in context on answers that were written beforehand (`style_guide.jsonl`), and by how far the model
is from the guided one, token by token, on what the guided one itself writes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from prompting import conversation, digest, first_token, floats, middle, odds, read_for, words

from mlxsteer.answers import Written, write
from mlxsteer.completions import Completion
from mlxsteer.extract import extract
from mlxsteer.forced import Forced, Text
from mlxsteer.library import concept, concepts
from mlxsteer.metrics import log_softmax, token_kl
from mlxsteer.neutral import Neutral
from mlxsteer.nulls import nearest
from mlxsteer.progress import Progress, silent
from mlxsteer.prompts import Message, Pair, Recipe, Side, pairs_sha256, render
from mlxsteer.state import OFF
from mlxsteer.steering import Steering
from mlxsteer.tables import read_rows
from mlxsteer.vector import Vector

__all__ = ["STRENGTHS", "contrasts", "guide", "guide_key", "guide_pairs", "measure_guide"]

FOLDER = Path(__file__).parent
STRENGTHS = (0.25, 0.5, 1.0)
ONE = "last 1"  # what is shown in a line: read as every other vector, at its calibrated strength
TRAINING = "terse"  # whose training prompts are read with and without the guide
READ = 3  # dev answers of every concept that are read behind the guide and without it
OTHERS = 2  # vectors of other concepts, the nearest
ANSWERS, TOKENS = 8, 32  # that the guided model writes
SHOWN = 2  # of them, beside what the others write


def guide() -> str:
    """Return the style guide."""
    return (FOLDER / "style_guide.md").read_text(encoding="utf-8").strip()


def guide_pairs() -> list[Completion]:
    """Return prompts with an answer in the guide's style and one in another."""
    keys = ("prompt", "positive", "negative")
    return [Completion(**row) for _, row in read_rows(FOLDER / "style_guide.jsonl", keys)]


def contrasts(text: str) -> dict[str, list[Pair]]:
    """Return what is read with the guide and without it, by the way to read: the guide is the
    system message, or there is none but the template's own.
    """
    training = concept(TRAINING).recipe
    assert training is not None
    answers: list[Pair] = []
    for found in concepts():
        for one in [one for one in found.completions if one.split == "dev"][:READ]:
            said = conversation(None, (), one.prompt)
            said.append({"role": "assistant", "content": one.negative})
            answers.append(Pair([{"role": "system", "content": text}, *said], said))
    return {"last": Recipe(training.prompts, text, "").pairs(), "response": answers}


def guide_key(model: Any, others: Sequence[Vector]) -> str:
    """Return the hash of all that is measured."""
    pairs = [[one.prompt, one.positive, one.negative] for one in guide_pairs()]
    read = [pairs_sha256(some) for some in contrasts(guide()).values()]
    sizes = [STRENGTHS, OTHERS, ANSWERS, TOKENS]
    return digest([repr(model.source), pairs, read, sizes, [v.content_sha256 for v in others]])


def measure_guide(
    model: Any,
    tokenizer: Any,
    text: str,
    pairs: Sequence[Completion],
    read: Mapping[str, Sequence[Pair]],
    others: Sequence[Vector] = (),
    *,
    neutral: Neutral | None = None,
    seconds: float = 20.0,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Return what a guide does in context and as a vector.

    Args:
        text: the guide; `pairs` judge it, and `read`, by the way to read, makes a vector each.
        others: vectors of other concepts, to tell the guide's style from any change at all.
        seconds: the most for the comparison of times.
    """
    vectors = {
        how: extract(
            model,
            tokenizer,
            contrast,
            name=f"style-guide-{how}",
            read=how,
            neutral=neutral,
            progress=progress,
        )
        for how, contrast in read.items()
    }
    rivals = nearest(vectors["last"], others, OTHERS)
    first = min(v.layers[0] for v in (*vectors.values(), *rivals))
    steerings = {f"{how} {s:g}": Steering((v, s)) for how, v in vectors.items() for s in STRENGTHS}
    steered = {**steerings, **{v.name: Steering((v, 1.0)) for v in rivals}}

    sides = [with_guide(text, one.prompt) for one in pairs]
    plain = read_for(model, tokenizer, [one.prompt for one in pairs], pairs, first)
    guided = read_for(model, tokenizer, sides, pairs, first)
    scores = {"plain": odds(plain, OFF), "guide": odds(guided, OFF)}
    scores["both"] = odds(guided, steerings[ONE])
    stage = "reading answers in the guide's style"
    for done, (name, steering) in enumerate(steered.items()):
        progress(stage, done, len(steered))
        scores[name] = odds(plain, steering)
    progress(stage, len(steered), len(steered))

    some, stage = [one.prompt for one in pairs[:ANSWERS]], "writing with the guide"
    wanted: list[tuple[Side, Steering]] = [(side, OFF) for side in sides[:ANSWERS]]
    (written,) = write(model, tokenizer, [wanted], TOKENS, progress=progress, stage=stage)
    said = _distributions(Forced(model, _joined(tokenizer, sides[:ANSWERS], written)))
    texts = Forced(model, _joined(tokenizer, some, written), first)
    kl = {name: floats(_from(said, texts, s)) for name, s in {"plain": OFF, **steered}.items()}

    shown: list[tuple[Side, Steering]] = [
        (prompt, s) for prompt in some[:SHOWN] for s in (OFF, steerings[ONE])
    ]
    more = [w.text for w in write(model, tokenizer, [shown], TOKENS, progress=progress)[0]]
    prompt = middle(tokenizer, pairs)
    timed = with_guide(text, prompt), prompt, steerings[ONE]
    return {
        "words": words(tokenizer, text),
        "vectors": {how: _record(vector) for how, vector in vectors.items()},
        "others": [v.name for v in rivals],
        "scores": scores,
        "kl": kl,
        "kl_tokens": sum(len(w.tokens) for w in written),
        "first_token": first_token(model, tokenizer, *timed, seconds),
        "answers": [
            {"prompt": prompt, "plain": more[2 * i], "guide": written[i].text, ONE: more[2 * i + 1]}
            for i, prompt in enumerate(some[:SHOWN])
        ],
    }


def with_guide(text: str, prompt: str) -> list[Message]:
    """Return a prompt with the guide as the system message."""
    return [{"role": "system", "content": text}, {"role": "user", "content": prompt}]


def _record(vector: Vector) -> dict[str, Any]:
    assert vector.calibration is not None
    return {
        "sha256": vector.content_sha256,
        "layers": list(vector.layers),
        "pairs": vector.n_pairs,
        "factor": vector.calibration["factor"],
        "kl": vector.calibration["kl"],
    }


def _joined(tokenizer: Any, sides: Sequence[Side], answers: Sequence[Written]) -> list[Text]:
    """Return what was written as answers to prompts, which need not be those it was written to."""
    prompts = [render(tokenizer, side) for side in sides]
    return [
        Text((*prompt, *answer.tokens), len(prompt))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def _distributions(texts: Forced) -> dict[int, np.ndarray]:
    """Return the log-probabilities at every answer token of each text, `[n, V]`."""
    found = {}
    for rows, _, logits in texts.read(OFF):
        values = log_softmax(np.asarray(logits))
        for row in np.unique(rows):
            found[int(row)] = values[rows == row]
    return found


def _from(said: dict[int, np.ndarray], texts: Forced, steering: Steering) -> np.ndarray:
    """Return the mean KL from the guided distributions to the steered ones, per text, `[N]`."""
    found = np.zeros(len(said))
    for rows, _, logits in texts.read(steering):
        values = np.asarray(logits)
        for row in np.unique(rows):
            found[row] = token_kl(said[int(row)], values[rows == row]).mean()
    return found
