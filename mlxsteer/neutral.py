"""Neutral text: what a model itself answers, unsteered, to prompts that ask for nothing special.

It is what the cost of a steering is measured on. This module knows nothing of vectors or steering.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.nn as nn
import numpy as np

from .errors import MlxsteerError
from .generate import encode, generate_batch
from .library import neutral_prompts
from .progress import Progress, silent

__all__ = ["Neutral"]

MIN_TOKENS = 1000  # response tokens behind a calibration
ANSWER_TOKENS = 32  # per prompt


@dataclass(frozen=True)
class Neutral:
    """Neutral prompts with the model's own unsteered answers: the text a strength is measured on.

    Attributes:
        sequences: prompt and answer tokens of each.
        prompt_lengths: where each answer begins.
    """

    sequences: tuple[tuple[int, ...], ...]
    prompt_lengths: tuple[int, ...]

    @classmethod
    def write(
        cls,
        model: nn.Module,
        tokenizer: Any,
        *,
        prompts: Sequence[str] | None = None,
        min_tokens: int = MIN_TOKENS,
        progress: Progress = silent,
    ) -> "Neutral":
        """Let the unsteered model answer as many prompts as it takes to write `min_tokens`,
        greedily.

        Raises:
            MlxsteerError: the prompts run out first.
        """
        texts = neutral_prompts() if prompts is None else tuple(prompts)
        sequences: list[tuple[int, ...]] = []
        lengths: list[int] = []
        written, stage = 0, "writing neutral answers"
        progress(stage, 0, min_tokens)
        while written < min_tokens and len(sequences) < len(texts):
            need = math.ceil((min_tokens - written) / ANSWER_TOKENS)
            some = texts[len(sequences) : len(sequences) + need]
            rows = [encode(model, tokenizer, text) for text in some]
            answers: list[list[int]] = [[] for _ in rows]
            for row, token in generate_batch(model, tokenizer, rows, max_tokens=ANSWER_TOKENS):
                answers[row].append(token)
                written += 1
                progress(stage, min(written, min_tokens), min_tokens)
            sequences += [(*row, *answer) for row, answer in zip(rows, answers, strict=True)]
            lengths += [len(row) for row in rows]
        if written < min_tokens:
            raise MlxsteerError(
                f"{len(texts)} neutral prompts gave {written} tokens, {min_tokens} are needed: "
                "give more prompts"
            )
        return cls(tuple(sequences), tuple(lengths))

    @property
    def tokens(self) -> int:
        """Response tokens in all."""
        return sum(len(s) for s in self.sequences) - sum(self.prompt_lengths)

    @property
    def sha256(self) -> str:
        """Hash of the text, so that two calibrations can be compared."""
        text = json.dumps([self.sequences, self.prompt_lengths], separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def some(self, count: int) -> "Neutral":
        """Return `count` of the texts, spread over all."""
        pick = np.linspace(0, len(self.sequences) - 1, min(count, len(self.sequences))).astype(int)
        return Neutral(
            tuple(self.sequences[i] for i in pick), tuple(self.prompt_lengths[i] for i in pick)
        )
