"""Numbers about distributions: how far two next-token distributions are, how well a direction
separates.

Plain functions of arrays. They know nothing of models, prompts or vectors.
"""

import numpy as np

__all__ = ["auroc", "cohens_d", "log_softmax", "token_kl"]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return log-probabilities `[..., V]` of logits `[..., V]`, float32."""
    shifted: np.ndarray = logits - logits.max(axis=-1, keepdims=True)
    total = np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float64)
    shifted -= np.log(total).astype(np.float32)
    return shifted


def token_kl(log_p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    """Return `KL(p || q)` in nats per token, `[...]`, of log-probabilities `[..., V]`."""
    weighted = log_p - log_q
    weighted *= np.exp(log_p)
    per_token: np.ndarray = weighted.sum(axis=-1, dtype=np.float64)
    return per_token


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Return the share of pairs in which the positive scores higher; a tie counts half."""
    diff = positive[:, None] - negative[None, :]
    return float((diff > 0).mean() + 0.5 * (diff == 0).mean())


def cohens_d(positive: np.ndarray, negative: np.ndarray) -> float:
    """Return the difference of means in units of the pooled standard deviation."""
    pooled = np.sqrt((positive.var(ddof=1) + negative.var(ddof=1)) / 2)
    return float((positive.mean() - negative.mean()) / pooled) if pooled > 0 else 0.0
