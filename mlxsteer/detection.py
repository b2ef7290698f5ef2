"""Whether the concept shows in written text: a probe on what the model reads in it.

The probe learns from answers that the model wrote when it was asked in words for the concept, and
for its opposite, to training prompts; it is tried on answers to training prompts of other topics
and admitted only if it tells them apart there. What it looks at is the mean residual of an answer
read without steering and with the instruction removed: the text alone.

It knows nothing of models or of how text was written. Shapes: features are `[N, D]`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .methods import probe
from .metrics import auroc
from .prompts import Prompt

__all__ = ["ADMITTED", "Detector", "by_topic"]

ADMITTED = 0.8  # AUROC on held-out topics
HELD_OUT = 3  # one topic in so many


@dataclass(frozen=True)
class Detector:
    """A direction with a threshold, and how well it told held-out answers apart."""

    direction: np.ndarray
    threshold: float
    auroc: float

    @classmethod
    def fit(
        cls, train: tuple[np.ndarray, np.ndarray], held_out: tuple[np.ndarray, np.ndarray]
    ) -> "Detector":
        """Learn from a positive and a negative side, and try on another two."""
        row = probe(*train).astype(np.float64)
        direction = row / max(float(np.linalg.norm(row)), 1e-30)
        middle = sum(float((side @ direction).mean()) for side in train) / 2
        return cls(direction, middle, auroc(*(side @ direction for side in held_out)))

    @property
    def admitted(self) -> bool:
        """Whether it may be believed."""
        return self.auroc >= ADMITTED

    def share(self, features: np.ndarray) -> float:
        """Return the share of answers in which the concept shows."""
        return float((features @ self.direction > self.threshold).mean())


def by_topic(prompts: Sequence[Prompt], most: int) -> tuple[list[str], list[str]]:
    """Return training prompts to learn from and, of other topics, to try on: `most` in all, spread
    over all topics. A prompt without a topic is a topic of its own.
    """
    train = [prompt for prompt in prompts if prompt.split == "train"]
    topics: dict[str, list[str]] = {}
    for i, prompt in enumerate(train):
        topics.setdefault(prompt.topic or f"{i}", []).append(prompt.text)
    rounds = max(map(len, topics.values()), default=0)
    order = [
        (number % HELD_OUT == HELD_OUT - 1, texts[i])
        for i in range(rounds)
        for number, texts in enumerate(topics.values())
        if i < len(texts)
    ][:most]
    return [text for held, text in order if not held], [text for held, text in order if held]
