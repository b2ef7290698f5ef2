"""Whether text still holds together: three numbers that have to be good at once.

One alone misleads. A loop is likely, so it lowers perplexity; the concept itself is unlikely to the
plain model, so it raises perplexity there. Perplexity is therefore read under the model that was
asked for the concept in words, and loops and variety are counted beside it.

It knows nothing of models or steering. Shapes: an answer is a list of token ids.
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Coherence", "coherence", "distinct_2", "loops"]

RUN = 4  # tokens of a phrase
TIMES = 3  # how often it may not stand in one answer
MORE_LOOPS = 0.05  # of all answers, beyond the baseline's
LEAST_VARIETY = 0.8  # of the baseline's
MOST_PERPLEXITY = 4.0  # times the baseline's


@dataclass(frozen=True)
class Coherence:
    """How well some answers hold together.

    Attributes:
        perplexity: per token, under the model that is asked for the concept in words.
        loop_rate: the share of answers that loop.
        distinct_2: the share of different ones among the pairs of neighbours of an answer, mean.
    """

    perplexity: float
    loop_rate: float
    distinct_2: float

    def holds(self, baseline: "Coherence", *, most_perplexity: float = MOST_PERPLEXITY) -> bool:
        """Whether none of the three has broken, against the unsteered answers, whose perplexity
        may be multiplied by `most_perplexity`.
        """
        return (
            self.loop_rate <= baseline.loop_rate + MORE_LOOPS
            and self.distinct_2 >= LEAST_VARIETY * baseline.distinct_2
            and self.perplexity <= most_perplexity * baseline.perplexity
        )


def coherence(answers: Sequence[Sequence[int]], log_probs: np.ndarray) -> Coherence:
    """Return the coherence of answers.

    Args:
        log_probs: mean log-probability per token of each answer, `[N]`.
    """
    return Coherence(
        perplexity=float(np.exp(-np.mean(log_probs))),
        loop_rate=float(np.mean([loops(answer) for answer in answers])),
        distinct_2=float(np.mean([distinct_2(answer) for answer in answers])),
    )


def loops(answer: Sequence[int]) -> bool:
    """Return whether some phrase of `RUN` tokens stands there `TIMES` times or more."""
    phrases = Counter(tuple(answer[i : i + RUN]) for i in range(len(answer) - RUN + 1))
    return max(phrases.values(), default=0) >= TIMES


def distinct_2(answer: Sequence[int]) -> float:
    """Return the share of different ones among all pairs of neighbours; 1 where there is none."""
    pairs = list(itertools.pairwise(answer))
    return len(set(pairs)) / len(pairs) if pairs else 1.0
