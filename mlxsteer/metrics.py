"""Numbers about distributions: how far two next-token distributions are, how well a direction
separates.

Plain functions of arrays. They know nothing of models, prompts or vectors.
"""

from collections.abc import Iterator

import numpy as np

__all__ = ["auroc", "cohens_d", "log_softmax", "token_kl", "token_log_probs"]

CACHED = 1 << 18  # float32 numbers that a core keeps at hand


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return log-probabilities `[..., V]` of logits `[..., V]`, float32."""
    shifted: np.ndarray = logits - logits.max(axis=-1, keepdims=True)
    total = np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float64)
    shifted -= np.log(total).astype(np.float32)
    return shifted


def token_log_probs(logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Return the log-probability of one token each, `[n]`, under logits `[n, V]`, float32."""
    found = np.empty(len(logits), np.float32)
    for some in _parts(logits):
        shifted = logits[some] - logits[some].max(axis=1, keepdims=True)
        picked = shifted[np.arange(len(shifted)), tokens[some]]
        total = np.exp(shifted, out=shifted).sum(axis=1, dtype=np.float64)
        found[some] = picked - np.log(total)
    return found


def token_kl(log_p: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Return `KL(p || q)` in nats per token, `[n]`, of the log-probabilities of p and the logits
    of q (its log-probabilities are logits too), `[n, V]`.
    """
    found = np.empty(len(log_p))
    for some in _parts(log_p):
        shifted = logits[some] - logits[some].max(axis=1, keepdims=True)
        p = np.exp(log_p[some])
        weighted = log_p[some] - shifted
        weighted *= p
        total = np.exp(shifted, out=shifted).sum(axis=1, dtype=np.float64)
        cross = weighted.sum(axis=1, dtype=np.float64)
        found[some] = cross + np.log(total) * p.sum(axis=1, dtype=np.float64)
    return found


def _parts(rows: np.ndarray) -> Iterator[slice]:
    """Yield slices of as many rows as a core keeps at hand while they are worked on."""
    step = max(1, CACHED // rows.shape[1])
    return (slice(start, start + step) for start in range(0, len(rows), step))


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Return the share of pairs in which the positive scores higher; a tie counts half."""
    diff = positive[:, None] - negative[None, :]
    return float((diff > 0).mean() + 0.5 * (diff == 0).mean())


def cohens_d(positive: np.ndarray, negative: np.ndarray) -> float:
    """Return the difference of means in units of the pooled standard deviation."""
    pooled = np.sqrt((positive.var(ddof=1) + negative.var(ddof=1)) / 2)
    return float((positive.mean() - negative.mean()) / pooled) if pooled > 0 else 0.0
