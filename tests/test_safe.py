"""The safe range: it ends where text breaks, on the side where it breaks."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from tiny import LAYERS, tiny, tokenizer, vector

from mlxsteer import answers, safe
from mlxsteer.answers import Written
from mlxsteer.calibrate import calibrate
from mlxsteer.errors import UsageError
from mlxsteer.neutral import Neutral
from mlxsteer.prompts import Recipe
from mlxsteer.safe import FIRST, STRENGTHS, SafeRange, reach, safe_range
from mlxsteer.vector import Vector

WHOLE = Written(3, tuple(range(safe.TOKENS)), "")
LOOP = Written(3, (1, 2, 3, 4) * 5, "")


def fake(monkeypatch: pytest.MonkeyPatch, low: float, high: float, nan: float = 99) -> list[float]:
    """Let text loop beyond low and high, and numbers end at `nan`; return the strengths asked."""
    asked: list[float] = []

    def write(
        model: Any, tokenizer: Any, wanted: Sequence[Any], *a: Any, **kw: Any
    ) -> list[list[Written]]:
        strengths = [sum(term.strength for term in group[0][1]) for group in wanted]
        if any(abs(s) >= nan for s in strengths):
            raise UsageError("NaN")
        asked.extend(sorted({s for s in strengths if s}))
        return [[WHOLE if low <= s <= high else LOOP] * len(wanted[0]) for s in strengths]

    monkeypatch.setattr(safe, "write", write)
    monkeypatch.setattr(answers, "log_probs", lambda m, t, sides, some, p: np.zeros(len(some)))
    return asked


@pytest.mark.parametrize("high", [0.0, *STRENGTHS])
@pytest.mark.parametrize("low", [0.0, *STRENGTHS])
def test_every_end_is_found(low: float, high: float, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = fake(monkeypatch, -low, high)
    found = safe_range(None, None, vector())  # type: ignore[arg-type]
    assert found == SafeRange(-low, high, safe.PROMPTS, safe.TOKENS, False)
    assert len(asked) == 2 * len(FIRST) + 2


def test_a_strength_beyond_one_that_breaks_is_not_safe() -> None:
    """Text that loops at 1, and happens not to at 2, is told from 1 on."""
    held = {1.0: False, 2.0: True, 0.5: True, -1.0: True, -2.0: False, -1.5: True}
    assert (reach(held, 1), reach(held, -1)) == (0.5, 1.5)
    assert reach({1.0: True, 2.0: True, 3.0: True}, 1) == 3
    assert reach({1.0: False, 2.0: True, 0.5: False}, 1) == 0


def test_a_strength_that_gives_no_numbers_is_not_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, -9, 9, nan=2)
    found = safe_range(None, None, vector())  # type: ignore[arg-type]
    assert (found.low, found.high) == (-1.5, 1.5)


def test_perplexity_is_read_under_the_pole_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Steered answers cost 2 nats more than plain ones: too much where words ask for them."""
    sides_read: list[Any] = []

    def log_probs(
        m: Any, t: Any, sides: Sequence[Any], answers: Sequence[Written], progress: Any
    ) -> np.ndarray:
        sides_read.append(sides[0])
        return np.array([-2.0 if one is not WHOLE else 0.0 for one in answers])

    other = Written(3, WHOLE.tokens, "other")

    def write(
        model: Any, tokenizer: Any, wanted: Sequence[Any], *a: Any, **kw: Any
    ) -> list[list[Written]]:
        return [[other if steering.active else WHOLE for _, steering in g] for g in wanted]

    monkeypatch.setattr(safe, "write", write)
    monkeypatch.setattr(answers, "log_probs", log_probs)
    recipe = Recipe(("a",), "be long", "be short", "suffix")
    found = safe_range(None, None, vector(), recipe=recipe)  # type: ignore[arg-type]
    assert (found.low, found.high, found.asked) == (0, 0, True)
    assert {side.split()[-1] for side in sides_read} == {"long", "short"}
    for word, ends in (("long", (-3, 0)), ("short", (0, 3))):  # one pole alone costs too much

        def one(
            m: Any, t: Any, sides: Sequence[Any], some: Any, progress: Any, word: str = word
        ) -> Any:
            return log_probs(m, t, sides, some, progress) * sides[0].endswith(word)

        monkeypatch.setattr(answers, "log_probs", one)
        found = safe_range(None, None, vector(), recipe=recipe)  # type: ignore[arg-type]
        assert (found.low, found.high) == ends
    monkeypatch.setattr(answers, "log_probs", log_probs)
    sides_read.clear()
    found = safe_range(None, None, vector())  # type: ignore[arg-type]
    assert (found.low, found.high, found.asked) == (-3, 3, False)
    assert {side.split()[-1] for side in sides_read}.isdisjoint({"long", "short"})


def test_a_model_that_is_pushed_to_one_word_has_been_pushed_too_far() -> None:
    model = tiny()
    model.model.norm.weight = 6 * model.model.norm.weight
    row = np.array(model.model.embed_tokens.weight[40])
    towards = Vector.from_rows("towards", {LAYERS - 1: 10 * row / np.linalg.norm(row)})
    found = safe_range(model, tokenizer(), towards)
    assert (found.low, found.high) == (-3, 2)
    turned = safe_range(model, tokenizer(), -towards)
    assert (turned.low, turned.high) == (-2, 3)
    nothing = Vector.from_rows("nothing", {0: 1e-6 * row})
    assert safe_range(model, tokenizer(), nothing) == SafeRange(-3, 3, 8, 20, False)


def test_a_calibration_records_the_range_of_what_it_returns() -> None:
    model = tiny()
    model.model.norm.weight = 6 * model.model.norm.weight
    text = Neutral.write(model, tokenizer(), prompts=["be short", "what now"], min_tokens=40)
    fixed = calibrate(model, tokenizer(), vector(), neutral=text)
    assert fixed.calibration is not None
    found = asdict(safe_range(model, tokenizer(), fixed))
    assert fixed.calibration["safe"] == found
    quick = calibrate(model, tokenizer(), vector(), neutral=text, limits=False)
    assert quick.calibration == {k: v for k, v in fixed.calibration.items() if k != "safe"}
    assert found != asdict(safe_range(model, tokenizer(), vector(scale=9)))
