"""Claims of a library: corrected over all of them, and read from records that may be anything."""

import math
from typing import Any

import numpy as np
import pytest

from mlxsteer.claims import claims, condition, interval, number, records
from mlxsteer.stats import paired_bootstrap

NOISE = np.random.default_rng(0).normal(size=24)


def record(effect: float, passed: bool = True, **changes: Any) -> dict[str, Any]:
    """An evaluation in which strength 1 beats the strongest null by `effect`."""
    ours = {"strength": 1.0, "asked": False, "scores": list(NOISE + effect)}
    both = {"strength": 1.0, "asked": True, "scores": list(NOISE - 9)}
    conditions = [{"strength": 0.0, "asked": False, "scores": [0.0] * 24}, both, ours]
    nulls = [{"name": "first", "scores": [0.0] * 24}, {"name": "second", "scores": [-9.0] * 24}]
    return {"conditions": conditions, "nulls": nulls, "passed": passed, **changes}


def test_a_claim_is_of_strength_1_against_the_first_null() -> None:
    (one,) = claims({"a": record(1.0)}).values()
    assert one.null == "first"
    assert one.difference == paired_bootstrap(NOISE + 1.0)
    assert one.stands
    assert one.passed


def test_what_stands_alone_may_fall_among_many() -> None:
    effect = 0.44 - float(NOISE.mean())
    alone = claims({"a": record(effect)})["a"]
    assert alone.stands
    many = {f"b{i}": record(-float(NOISE.mean())) for i in range(30)}
    among = claims({"a": record(effect), **many})["a"]
    assert among.difference.low < 0 < alone.difference.low
    assert not among.stands
    assert not among.passed


@pytest.mark.parametrize(
    ("effect", "passed"), [(-1.0, True), (0.0 - float(NOISE.mean()), True), (1.0, False)]
)
def test_what_does_not_beat_nulls_or_failed_alone_does_not_pass(
    effect: float, passed: bool
) -> None:
    assert not claims({"a": record(effect, passed)})["a"].passed


@pytest.mark.parametrize(
    "change",
    [
        {"conditions": None},
        {"conditions": [3]},
        {"nulls": []},
        {"nulls": [{"name": "x", "scores": [0.0] * 23}]},
        {"nulls": [{"name": "x", "scores": [True] * 24}]},
        {"nulls": [{"name": "x", "scores": [math.nan] * 24}]},
        {"nulls": [{"name": "x", "scores": "0" * 24}]},
    ],
)
def test_a_strange_record_makes_no_claim_and_counts_for_none(change: dict[str, Any]) -> None:
    found = claims({"a": record(1.0), "b": record(1.0, **change)})
    assert found == claims({"a": record(1.0)})
    assert claims({"b": record(1.0, **change)}) == {}


def test_passed_must_be_said_plainly() -> None:
    assert not claims({"a": record(1.0, passed="yes")})["a"].passed  # type: ignore[arg-type]


def test_what_a_file_holds() -> None:
    one, two = record(1.0), record(2.0)
    assert records(one) == (one,)
    assert records({"evaluations": [one, 3, two]}) == (one, two)
    assert records({"evaluations": 3}) == ()
    assert condition(one, 1.0)["scores"] == list(NOISE + 1.0)
    assert condition(one, 1.0, asked=True)["scores"] == list(NOISE - 9)
    assert condition(one, 7.0) == {}
    assert [number(x) for x in (1, 2.5, True, "1", None, math.inf)] == [1, 2.5, *[None] * 4]
    assert interval({"mean": 1, "low": 0, "high": 2}) is not None
    assert interval({"mean": 1, "low": "x", "high": 2}) is None
    assert interval([1, 0, 2]) is None
