"""Neutral text: what a model itself answers, unsteered, to prompts that ask for nothing special.

It is what the cost of a steering is measured on. A model writes it once: `Neutral.kept` keeps it in
the user's cache, `neutral/<model_type>.<key>.json`, and whatever the text depends on is in the key.
This module knows nothing of vectors or steering.
"""

import hashlib
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from . import __version__
from .errors import MlxsteerError
from .generate import encode, forward, generate_batch
from .library import home, neutral_prompts
from .progress import Progress, silent
from .prompts import spread
from .values import canonical, parsed
from .vector_file import whole_file

__all__ = ["Neutral"]

log = logging.getLogger("mlxsteer")

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

    @classmethod
    def kept(
        cls,
        model: nn.Module,
        tokenizer: Any,
        *,
        prompts: Sequence[str] | None = None,
        min_tokens: int = MIN_TOKENS,
        progress: Progress = silent,
    ) -> "Neutral":
        """Return what `write` returns, from the cache if this model has written it before.

        A damaged file is written anew. Where the cache cannot be written, a note says so.

        Raises:
            MlxsteerError: the prompts run out first, or no place for a cache is known.
        """
        texts = neutral_prompts() if prompts is None else tuple(prompts)
        name = f"{model.model_type}.{_key(model, tokenizer, texts, min_tokens)}.json"
        path = home() / "neutral" / name
        if path.exists():
            try:
                return cls._read(path)
            except (OSError, MlxsteerError, KeyError, TypeError) as error:
                log.warning("%s is damaged (%s): it is written anew", path, error)
        text = cls.write(model, tokenizer, prompts=texts, min_tokens=min_tokens, progress=progress)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            text._save(path)
        except (OSError, MlxsteerError) as error:
            log.warning(
                "neutral answers cannot be kept and are written every time (%s): set "
                "MLXSTEER_HOME to a folder that can be written",
                error,
            )
        return text

    @classmethod
    def _read(cls, path: Path) -> "Neutral":
        read = parsed(path.read_bytes(), "it")
        text = cls(tuple(map(tuple, read["sequences"])), tuple(read["prompt_lengths"]))
        if read["sha256"] != text.sha256:
            raise MlxsteerError("its text is not that of its sha256")
        return text

    def _save(self, path: Path) -> None:
        with whole_file(path) as temporary:
            record = {
                "sequences": self.sequences,
                "prompt_lengths": self.prompt_lengths,
                "sha256": self.sha256,
            }
            temporary.write_text(canonical(record))

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
        pick = spread(range(len(self.sequences)), count)
        return Neutral(
            tuple(self.sequences[i] for i in pick), tuple(self.prompt_lengths[i] for i in pick)
        )


def _key(model: nn.Module, tokenizer: Any, texts: Sequence[str], min_tokens: int) -> str:
    """Return a digest of all that decides what the model writes.

    The logits of one prompt stand for weights, packing, dtype, device and libraries: a model that
    was changed after loading computes others. `source` adds what one prompt does not reach.
    """
    rows = [encode(model, tokenizer, text) for text in texts]
    logits = np.array(forward(model, rows[0])) if rows else np.zeros(0)
    parts = [
        hashlib.sha256(logits.tobytes()).hexdigest(),
        repr(getattr(model, "source", None)),
        rows,
        sorted(tokenizer.eos_token_ids),
        [min_tokens, ANSWER_TOKENS],
        [__version__, version("mlx"), str(mx.default_device())],
    ]
    return hashlib.sha256(canonical(parts).encode()).hexdigest()[:16]
