"""Scores against log-probabilities taken by hand, and their signs."""

import numpy as np
import pytest
from tiny import tiny, tokenizer, vector

from mlxsteer.capability import Question
from mlxsteer.completions import Completion
from mlxsteer.errors import MlxsteerError
from mlxsteer.generate import forward
from mlxsteer.metrics import log_softmax
from mlxsteer.prompts import Recipe, Side, render
from mlxsteer.scoring import LogOdds, Margins, end_of_turn
from mlxsteer.steering import Steering

COMPLETIONS = [
    Completion("how was your day", "long day", "short", "test"),
    Completion("tell me about the sea", "the sea is blue", "now please", "test"),
]
RECIPE = Recipe(("what now",), "be a pirate", "be short")
OFF = Steering()
END = 1  # <end>, in the template of the tiny tokenizer and in its end tokens


def log_prob(model, side: Side, answer: str, steering: Steering = OFF) -> float:
    """Mean log-probability of an answer and its end, in one pass without anything shared."""
    before = render(tokenizer(), side)
    tokens = [*before, *tokenizer().encode(answer, add_special_tokens=False), END]
    logs = log_softmax(np.array(forward(model, tokens, steering=steering)))
    return float(np.mean([logs[t - 1, tokens[t]] for t in range(len(before), len(tokens))]))


@pytest.mark.parametrize("recipe", [None, RECIPE])
def test_log_odds_are_the_definition(recipe: Recipe | None) -> None:
    model = tiny()
    scorer = LogOdds(model, tokenizer(), COMPLETIONS, recipe=recipe, first=1)
    for steering in (OFF, Steering((vector(scale=6.0), 1.0)), Steering((vector(scale=6.0), -1.0))):
        expected = [
            log_prob(model, side, one.positive, steering)
            - log_prob(model, side, one.negative, steering)
            for one in COMPLETIONS
            for side in [recipe.side(one.prompt, recipe.positive) if recipe else one.prompt]
        ]
        assert scorer(steering) == pytest.approx(np.array(expected), rel=1e-3, abs=1e-4)
    assert np.abs(scorer(OFF) - expected).max() > 0.01


def test_sides_exchanged_turn_the_sign() -> None:
    model = tiny()
    turned = [Completion(c.prompt, c.negative, c.positive, "test") for c in COMPLETIONS]
    ours, theirs = (LogOdds(model, tokenizer(), some)(OFF) for some in (COMPLETIONS, turned))
    assert ours == pytest.approx(-theirs, rel=1e-4)
    assert np.abs(ours).min() > 0.01


def test_margins_are_the_right_choice_less_the_best_wrong_one() -> None:
    model = tiny()
    questions = [Question("why is the sky blue", ("sea", "sky day", "cook", "short"), 1)]
    found = Margins(model, tokenizer(), questions)(OFF)
    each = [log_prob(model, questions[0].text, choice) for choice in questions[0].choices]
    assert found == pytest.approx(each[1] - max(each[0], *each[2:]), rel=1e-3)
    other = [Question(questions[0].text, questions[0].choices, int(np.argmax(each)))]
    assert Margins(model, tokenizer(), other)(OFF)[0] > 0


def test_the_end_of_a_turn_is_found_in_the_template() -> None:
    assert end_of_turn(tokenizer()) == END
    other = tokenizer()
    other.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} now {% endfor %}"
    )
    now = other.encode("now", add_special_tokens=False)[0]
    other._eos_token_ids = {1, now}
    assert end_of_turn(other) == now


def test_a_template_that_refuses_the_instruction_is_named() -> None:
    deaf = tokenizer()
    deaf.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        + str(deaf.chat_template)
    )
    assert LogOdds(tiny(), deaf, COMPLETIONS)(OFF).shape == (2,)
    with pytest.raises(MlxsteerError, match=r"refuses system messages: no system; give the inst"):
        LogOdds(tiny(), deaf, COMPLETIONS, recipe=RECIPE)
