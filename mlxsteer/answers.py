"""What a model writes under several conditions, and what can be seen in the text alone.

Answers to all prompts under all conditions are written greedily in one batch that is filled up as
rows end. It knows nothing of effects, nulls or evidence.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.nn as nn
import numpy as np

from .coherence import Coherence, coherence
from .forced import Forced, Text, read_means
from .generate import generate_batch
from .progress import Progress, silent
from .prompts import Side, check_length, render
from .scoring import end_of_turn
from .state import OFF
from .steering import Steering

__all__ = ["Written", "log_probs", "means", "read_coherence", "write"]


@dataclass(frozen=True)
class Written:
    """One answer: its tokens (an end token last, if the model ended it) and its text."""

    prompt_tokens: int
    tokens: tuple[int, ...]
    text: str


def write(
    model: nn.Module,
    tokenizer: Any,
    wanted: Sequence[Sequence[tuple[Side, Steering]]],
    tokens: int,
    *,
    progress: Progress = silent,
    stage: str = "writing answers",
) -> list[list[Written]]:
    """Return the answers of at most `tokens` tokens, group by group as they were `wanted`: each
    prompt under its own steering, all of them in one batch.
    """
    flat = [one for group in wanted for one in group]
    prompts = [render(tokenizer, side) for side, _ in flat]
    rows: list[list[int]] = [[] for _ in flat]
    total, end = len(flat) * tokens, end_of_turn(tokenizer)
    progress(stage, 0, total)
    order = sorted(range(len(flat)), key=lambda i: len(prompts[i]))  # so that little is padded
    stream = generate_batch(
        model,
        tokenizer,
        [prompts[i] for i in order],
        steering=[flat[i][1] for i in order],
        max_tokens=tokens,
    )
    for done, (i, token) in enumerate(stream):
        rows[order[i]].append(token)
        progress(stage, done, total)
    progress(stage, total, total)
    found = []
    for prompt, row in zip(prompts, rows, strict=True):
        closed = row if len(row) == tokens else [*row, end]
        found.append(Written(len(prompt), tuple(closed), tokenizer.decode(row)))
    rest = iter(found)
    return [list(itertools.islice(rest, len(group))) for group in wanted]


def log_probs(
    model: nn.Module,
    tokenizer: Any,
    sides: Sequence[Side],
    answers: Sequence[Written],
    progress: Progress = silent,
) -> np.ndarray:
    """Return the mean log-probability per token of each answer behind a prompt, unsteered, `[N]`.

    The prompts need not be those to which the answers were written.
    """
    texts = _joined(model, tokenizer, sides, answers)
    return Forced(model, texts).log_probs(OFF, progress=progress)


def read_coherence(
    model: nn.Module,
    tokenizer: Any,
    sides: Sequence[Side],
    groups: Sequence[Sequence[Written]],
    progress: Progress = silent,
) -> list[Coherence]:
    """Return the coherence of groups of answers, read all together: a prompt is read once.

    Args:
        sides: the prompts behind which perplexity is read, unsteered; a group has an answer to
            each of them in turn, once or several times over.
    """
    asked = [side for some in groups for side, _ in zip(itertools.cycle(sides), some, strict=False)]
    flat = [one for some in groups for one in some]
    read = iter(log_probs(model, tokenizer, asked, flat, progress))
    return [
        coherence([one.tokens for one in some], np.array(list(itertools.islice(read, len(some)))))
        for some in groups
    ]


def means(
    model: nn.Module, tokenizer: Any, sides: Sequence[Side], groups: Sequence[Sequence[Written]]
) -> list[np.ndarray]:
    """Return the mean residual of each answer of a group behind a prompt, unsteered, in the middle
    of the model, `[N, D]` each. All groups are read together: a prompt is read once.

    Args:
        sides: the prompts; a group has an answer to each of them.
    """
    asked = [side for some in groups for side, _ in zip(sides, some, strict=True)]
    texts = _joined(model, tokenizer, asked, [one for some in groups for one in some])
    read = iter(read_means(model, texts, len(model.layers) // 2))
    return [np.array(list(itertools.islice(read, len(some)))) for some in groups]


def _joined(
    model: nn.Module, tokenizer: Any, sides: Sequence[Side], answers: Sequence[Written]
) -> list[Text]:
    texts = []
    for side, answer in zip(sides, answers, strict=True):
        prompt = render(tokenizer, side)
        tokens = (*prompt, *answer.tokens)
        check_length(tokens, getattr(model.args, "max_position_embeddings", None), "an answer")
        texts.append(Text(tokens, len(prompt)))
    return texts
