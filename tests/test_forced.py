"""Texts read under a steering give what one pass per text gives, token by token."""

from collections.abc import Callable
from typing import Any

import adopted
import numpy as np
import pytest
from tiny import tiny, vector
from tiny_deepseek import deepseek
from zoo import build

from mlxsteer.adopt import adopt
from mlxsteer.capture import capture
from mlxsteer.errors import MlxsteerError
from mlxsteer.forced import Forced, Text, read_means
from mlxsteer.generate import forward
from mlxsteer.metrics import log_softmax
from mlxsteer.steering import Steering

TEXTS = [
    Text((2, 7, 9, 11, 4, 30, 31, 1), 5),
    Text((2, 7, 9, 12, 13, 4, 32, 1), 6),
    Text((2, 7, 9, 11, 4, 33, 34, 35, 36, 1), 5),
    Text((2, 7, 9, 4, 1), 4),
]


# Three questions with three choices each; one question is longer than the others
QUESTIONS = ((2, 7, 9, 11, 4, 8, 6), (2, 7, 12, 13, 5, 14, 15, 16), (2, 7, 3, 11, 4, 10, 9))
CHOICES = ((30, 31, 1), (32, 1), (33, 34, 35, 1))
CHOSEN = [Text((*asked, *said), len(asked)) for asked in QUESTIONS for said in CHOICES]


def by_hand(model, steering: Steering | None, texts: list[Text] = TEXTS) -> np.ndarray:
    """Mean log-probability of the answer tokens, one text at a time."""
    found = []
    for text in texts:
        tokens = list(text.tokens)
        logits = forward(model, tokens, steering=steering, prompt_length=text.start)
        logs = log_softmax(np.array(logits))
        found.append(np.mean([logs[t - 1, tokens[t]] for t in range(text.start, len(tokens))]))
    return np.array(found)


@pytest.mark.parametrize("phase", ["all", "response", "prompt", "2:6"])
@pytest.mark.parametrize(("layers", "first"), [((0,), 0), ((1, 2), 1), ((2,), 2), ((2, 3), 0)])
def test_it_is_the_definition(phase: str, layers: tuple[int, ...], first: int) -> None:
    """Shared prefixes, padding and patched blocks change nothing."""
    model = tiny()
    v = vector(layers, scale=5.0, phase=phase)
    forced = Forced(model, TEXTS, first)
    assert forced.prefix == 3
    for strength in (1.0, 0.0, -1.0):  # the first call is steered, and keeps what is patched
        steering = Steering((v, strength))
        assert forced.log_probs(steering) == pytest.approx(by_hand(model, steering), rel=1e-4)
    plain, steered, turned = (by_hand(model, Steering((v, s))) for s in (0.0, 1.0, -1.0))
    assert np.abs(steered - plain).max() > 0.01
    assert np.abs(steered - turned).max() > 0.01


@pytest.mark.parametrize("phase", ["all", "response", "prompt", "2:6", "6:"])
@pytest.mark.parametrize(("layers", "first"), [((0,), 0), ((1, 2), 1), ((2,), 2), ((2, 3), (1, 2))])
def test_a_question_with_many_answers_is_read_once(
    phase: str, layers: tuple[int, ...], first: int | tuple[int, ...]
) -> None:
    model = tiny()
    v = vector(layers, scale=5.0, phase=phase)
    forced = Forced(model, CHOSEN, first)
    steerings = [Steering((v, strength)) for strength in (1.0, 0.0, -1.0, 1.0)]
    found = [forced.log_probs(steering) for steering in steerings]
    for steering, one in zip(steerings, found, strict=True):
        assert one == pytest.approx(by_hand(model, steering, CHOSEN), rel=1e-4)
    assert np.abs(found[0] - found[1]).max() > 0.01
    assert np.abs(found[0] - found[2]).max() > 0.01


def test_how_many_tokens_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    model, read = tiny(), []
    whole = type(model).__call__

    def counted(self: Any, tokens: Any, *rest: Any, **more: Any) -> Any:
        read.append(tokens.shape)
        return whole(self, tokens, *rest, **more)

    monkeypatch.setattr(type(model), "__call__", counted)
    Forced(model, CHOSEN).log_probs(Steering())
    assert read == [(1, 2), (3, 5), (9, 4)]
    read.clear()
    Forced(model, CHOSEN[:2]).log_probs(Steering())  # of one question: all is shared
    assert read == [(1, 6), (2, 3)]
    read.clear()
    Forced(model, [*CHOSEN[:4], *CHOSEN[6:]]).log_probs(Steering())  # not as many of each
    assert read == [(1, 2), (3, 5), (7, 4)]
    read.clear()
    long = [Text((*text.tokens[:-1], *range(12), 1), text.start) for text in CHOSEN[:3]]
    Forced(model, [*long, *CHOSEN[3:]]).log_probs(Steering())
    # short ones are read together behind prompts of any length, and not padded to the long ones
    assert read == [(1, 2), (3, 5), (6, 4), (3, 16)]


def test_sliding_windows_are_read_too() -> None:
    kinds: dict[str, Any] = {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "sliding_window": 3,
    }
    model = tiny(**kinds)
    steering = Steering((vector((1,), scale=5.0), 1.0))
    forced = Forced(model, TEXTS, 1)
    assert forced.prefix == 0
    assert forced.log_probs(steering) == pytest.approx(by_hand(model, steering), rel=1e-4)


def test_the_head_reads_answers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the last token of what all prompts share."""
    model, read = tiny(), []
    embedding = type(model.model.embed_tokens)
    head = embedding.as_linear

    def counted(self: Any, x: Any) -> Any:
        read.append(int(np.prod(x.shape[:-1])))
        return head(self, x)

    monkeypatch.setattr(embedding, "as_linear", counted)
    Forced(model, TEXTS).log_probs(Steering())
    assert sum(read) == 1 + sum(len(text.tokens) - text.start for text in TEXTS)


@pytest.mark.parametrize("texts", [TEXTS, CHOSEN], ids=["apart", "trunks"])
@pytest.mark.parametrize("family", ["olmo2", "gemma2"])  # Gemma 2's has one offset for all rows
def test_an_adopted_model_is_read_too(family: str, texts: list[Text]) -> None:
    """It never asks for a join, so that all its tokens reach the head."""
    model = adopt(build(family))
    last = len(model.layers) - 1
    v = adopted.vector(model, (last,), "resid_post", scale=3.0)
    forced = Forced(model, texts, last)
    steerings = [Steering((v, strength)) for strength in (0.0, 1.0, -1.0)]
    found = [forced.log_probs(steering) for steering in steerings]
    for steering, one in zip(steerings, found, strict=True):
        assert one == pytest.approx(by_hand(model, steering, texts), rel=1e-4)
    assert np.abs(found[1] - found[0]).max() > 0.01
    assert np.abs(found[1] - found[2]).max() > 0.01


def test_several_streams_are_read_too() -> None:
    model = deepseek()
    v = adopted.vector(model, (2,), "resid_post", scale=5.0)
    forced = Forced(model, TEXTS, 2)
    for strength in (0.0, 1.0, -1.0):
        steering = Steering((v, strength))
        assert forced.log_probs(steering) == pytest.approx(by_hand(model, steering), rel=1e-3)


def test_what_steers_below_the_lowest_block_is_refused() -> None:
    forced = Forced(tiny(), TEXTS, 2)
    with pytest.raises(MlxsteerError, match="'v0' steers layer 1, and 2 was named as the lowest"):
        forced.log_probs(Steering((vector((1, 2)), 1.0)))
    with pytest.raises(MlxsteerError, match="begins at token 3 of 3"):
        Text((1, 2, 3), 3)


@pytest.mark.parametrize("texts", [TEXTS, CHOSEN], ids=["apart", "trunks"])
@pytest.mark.parametrize("made", [tiny, deepseek], ids=["stream", "streams"])
def test_means_are_of_the_answer_alone(texts: list[Text], made: Callable[[], Any]) -> None:
    model = made()
    found = read_means(model, texts, 2)
    for row, text in zip(found, texts, strict=True):
        every = [
            capture(model, [text.tokens], layers=[2], positions=t)["resid_post"][0, 0]
            for t in range(len(text.tokens))
        ]
        assert row == pytest.approx(np.mean(every[text.start :], axis=0), rel=1e-3, abs=1e-4)
        assert row != pytest.approx(np.mean(every, axis=0), rel=1e-3, abs=1e-4)
