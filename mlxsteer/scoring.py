"""How much of a concept a model shows, and what it still knows, under any steering: log-odds of
answers that were written beforehand.

The score of a prompt is `mean log p(positive) - mean log p(negative)` over the tokens of two given
answers, in nats per token. The token that ends the turn is one of them: an answer of one word says
by its end that it is short. The margin of a question is the same for its right choice against the
best wrong one.

It knows nothing of how steering was found nor of what scores mean together. Shapes: `[N]` prompts.
"""

from collections.abc import Sequence
from typing import Any

import mlx.nn as nn
import numpy as np

from .capability import Question
from .completions import Completion
from .errors import MlxsteerError
from .forced import Forced, Text
from .prompts import Recipe, Side, check_length, render
from .steering import Steering

__all__ = ["LogOdds", "Margins", "answered", "end_of_turn", "prompted"]


def prompted(recipe: Recipe, prompt: str) -> Side:
    """Return a prompt with the concept asked for in words, as the recipe's positive side does."""
    return recipe.side(prompt, recipe.positive)


def end_of_turn(tokenizer: Any) -> int:
    """Return the token that ends a turn of the assistant in the model's chat template.

    Raises:
        MlxsteerError: the tokenizer has no end token.
    """
    chat = [{"role": role, "content": "a"} for role in ("user", "assistant", "user")]
    before, whole = render(tokenizer, chat[:1]), render(tokenizer, chat)
    ends = {int(token) for token in tokenizer.eos_token_ids}
    alike = next((i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), None)
    behind = whole[len(before) if alike is None else alike :]
    token = next((token for token in behind if token in ends), tokenizer.eos_token_id)
    if token is None:
        raise MlxsteerError("the tokenizer has no token that ends a turn: answers cannot be scored")
    return int(token)


def answered(model: nn.Module, tokenizer: Any, side: Side, answer: str, end: int) -> Text:
    """Return a prompt with an answer to it, closed by the token `end`.

    Raises:
        MlxsteerError: more than the model reads; a template that refuses the prompt.
    """
    before = render(tokenizer, side)
    said = [int(token) for token in tokenizer.encode(answer, add_special_tokens=False)]
    tokens = (*before, *said, end)
    check_length(tokens, getattr(model.args, "max_position_embeddings", None), "an answer")
    return Text(tokens, len(before))


class LogOdds:
    """Log-odds per token of positive over negative completions.

    Args:
        completions: at least one.
        recipe: asks for the concept in words before each prompt; None asks for nothing.
        first: the lowest block that any steering will steer, or where several begin.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        completions: Sequence[Completion],
        *,
        recipe: Recipe | None = None,
        first: int | Sequence[int] = 0,
    ) -> None:
        end = end_of_turn(tokenizer)
        texts = []
        for one in completions:
            side: Side = one.prompt if recipe is None else prompted(recipe, one.prompt)
            for answer in (one.positive, one.negative):
                texts.append(answered(model, tokenizer, side, answer, end))
        self._forced = Forced(model, texts, first)

    def __call__(self, steering: Steering) -> np.ndarray:
        """Return `[N]`, nats per token; positive is more of the concept."""
        both = self._forced.log_probs(steering).reshape(-1, 2)
        score: np.ndarray = both[:, 0] - both[:, 1]
        return score


class Margins:
    """The log-probability per token of the right choice less that of the best wrong one.

    Args:
        questions: at least one.
        first: the lowest block that any steering will steer, or where several begin.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Any, questions: Sequence[Question], *, first: int = 0
    ) -> None:
        end = end_of_turn(tokenizer)
        self._right = np.array([question.answer for question in questions])
        texts = [
            answered(model, tokenizer, question.text, choice, end)
            for question in questions
            for choice in question.choices
        ]
        self._forced = Forced(model, texts, first)

    def __call__(self, steering: Steering) -> np.ndarray:
        """Return `[N]`, nats per token; above 0 is a right answer."""
        each = self._forced.log_probs(steering).reshape(len(self._right), -1)
        rows = np.arange(len(each))
        right = each[rows, self._right]
        each[rows, self._right] = -np.inf
        margin: np.ndarray = right - each.max(axis=1)
        return margin
