"""When steering acts: phases and schedules mean the same however the tokens come."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.generate import BatchGenerator, generate_step
from tiny import tiny, vector

from mlxsteer.capture import capturing
from mlxsteer.errors import UsageError
from mlxsteer.generate import forward
from mlxsteer.plan import EditTap
from mlxsteer.runtime import Steered
from mlxsteer.state import OFF, Live, Row, SteeringState
from mlxsteer.steering import Phase, Schedule, Steering

TOKENS = [5, 17, 3, 80, 41, 9, 77, 30, 31, 12]
P = 4  # prompt
MARKER = (77, 30)  # closes the thinking: tokens 6 and 7
V = vector((1,), scale=2.0)

CASES: dict[str, tuple[dict[str, Any], list[float]]] = {
    "all": ({}, [1.0] * 10),
    "prompt": ({"phase": "prompt"}, [1.0] * 3 + [0.0] * 7),
    "response": ({"phase": "response"}, [0.0] * 3 + [1.0] * 7),
    "answer": ({"phase": "answer"}, [0.0] * 8 + [1.0] * 2),
    "2:5": ({"phase": "2:5"}, [0.0] * 2 + [1.0] * 3 + [0.0] * 5),
    "decay": (
        {"schedule": "decay(2)"},
        [1.0] * 4 + [0.5 ** (t / 2) for t in range(1, 7)],
    ),
    "ramp": ({"schedule": "ramp(4)"}, [0.0] * 3 + [0.25, 0.5, 0.75, 1, 1, 1, 1]),
    "response decay": (
        {"phase": "response", "schedule": "decay(3)"},
        [0.0] * 3 + [0.5 ** (t / 3) for t in range(7)],
    ),
    "answer ramp": (
        {"phase": "answer", "schedule": "ramp(10)"},
        [0.0] * 8 + [0.6, 0.7],
    ),
}


def pushes(model, steering: Steering, chunks: list[int], batch: int = 1) -> np.ndarray:
    """Return how far each token was pushed along the vector at its layer, `[B, T]`."""
    states = [SteeringState([Row(Live(steering), P, MARKER)]) for _ in range(batch)]
    state = states[0].merge(states)
    plain_cache, cache = model.make_cache(), model.make_cache()
    found, start = [], 0
    for length in chunks:
        tokens = mx.array([TOKENS[start : start + length]] * batch)
        inner = state.taps(tokens)
        wanted, kept = capturing([1], ["resid_post"], inner=inner)
        model(tokens, cache=cache, taps=wanted)
        plain_taps, plain = capturing([1], ["resid_post"])
        model(tokens, cache=plain_cache, taps=plain_taps)
        found.append(np.array(kept[1]["resid_post"] - plain[1]["resid_post"]))
        state.advance(length)
        start += length
    row = V.rows()[1]
    return np.concatenate(found, axis=1) @ row / (row @ row)


@pytest.mark.table("Phases and schedules", "case", "chunks, batch, sign")
@pytest.mark.parametrize(
    ("chunks", "batch"), [([10], 1), ([1] * 10, 3), ([4, 6], 3), ([3, 3, 1, 1, 2], 1), ([7, 3], 3)]
)
@pytest.mark.parametrize("case", CASES)
def test_every_phase_and_schedule_in_any_chunks(case: str, chunks: list[int], batch: int) -> None:
    options, expected = CASES[case]
    got = pushes(tiny(), Steering((V, 1.0), **options), chunks, batch)
    np.testing.assert_allclose(got, [expected] * batch, atol=1e-5)
    opposite = pushes(tiny(), Steering((V, -1.0), **options), chunks, batch)
    np.testing.assert_allclose(opposite, -got, atol=1e-5)


@pytest.mark.table("Phases and schedules", "case", "without a cache")
@pytest.mark.parametrize("case", CASES)
def test_the_same_without_a_cache(case: str) -> None:
    options, _ = CASES[case]
    steering = Steering((V, 3.0), **options)
    model = tiny()
    whole = forward(model, TOKENS, steering=steering, prompt_length=P, think_end=MARKER)
    steered = Steered(model)
    cache = steered.make_cache(steering, P, MARKER)
    parts = [steered(mx.array([TOKENS[a:b]]), cache=cache)[0] for a, b in ((0, 3), (3, 7), (7, 10))]
    np.testing.assert_allclose(np.array(whole), np.array(mx.concatenate(parts)), atol=2e-4)
    if case != "answer ramp":
        assert not mx.allclose(whole, forward(model, TOKENS), atol=1e-2)


def written(model, steering: Steering, think_end: tuple[int, ...], n: int = 12) -> list[int]:
    steered = Steered(model)
    cache = steered.make_cache(steering, P, think_end)
    step = generate_step(mx.array(TOKENS[:P]), steered, max_tokens=n, prompt_cache=cache)
    return [int(t) for t, _ in step]


@pytest.mark.parametrize("at", [2, 5])
def test_an_answer_is_steered_only_behind_the_models_own_marker(at: int) -> None:
    """The marker is a token the model writes itself; single and in a batch with others."""
    model = tiny()
    strong = vector((1, 2), scale=25.0)
    plain = written(model, Steering(), ())
    marker = (plain[at],)
    at = plain.index(plain[at])
    steering = Steering((strong, 1.0), phase="answer")
    alone = written(model, steering, marker)
    assert alone[: at + 2] == plain[: at + 2]
    assert alone != plain
    steered = Steered(model)
    generator = BatchGenerator(steered, max_tokens=12, prefill_step_size=2)
    caches = [steered.make_cache(s, P, marker) for s in (steering, Steering(), -1 * steering)]
    uids = generator.insert([TOKENS[:P], TOKENS[:P], TOKENS[1:P]], caches=caches)
    rows: dict[int, list[int]] = {uid: [] for uid in uids}
    while answers := generator.next_generated():
        for answer in answers:
            rows[answer.uid].append(answer.token)
    generator.close()
    assert rows[uids[0]] == alone
    assert rows[uids[1]] == plain


def test_a_model_without_thinking_answers_at_once() -> None:
    model = tiny()
    answer = Steering((V, 5.0), phase="answer")
    response = Steering((V, 5.0), phase="response")
    assert written(model, answer, ()) == written(model, response, ())
    with pytest.raises(UsageError, match="think_end"):
        forward(model, TOKENS, steering=answer, prompt_length=P)


def test_a_closed_thinking_block_in_the_prompt_counts_and_an_older_one_does_not() -> None:
    for early, expected in ((0, 0.0), (1, 1.0)):
        state = SteeringState([Row(Live(Steering((V, 1.0), phase="answer")), 14, (9,))])
        tokens = [9, *[1] * 13] if not early else [*[1] * 10, 9, 1, 1, 1]
        got = []
        for t in [*tokens, 2, 2]:
            table = state.taps(mx.array([[t]]))
            tap = table.at(1, "mlp")
            got.append(
                np.array(tap.streams[0].arrays[-1])[0, 0, 0] if isinstance(tap, EditTap) else 0.0
            )
            state.advance(1)
        assert got[-1] == got[13] == expected
        assert got[:13] == [0.0] * 13


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("before", [OFF, Steering((V, 2.0), phase="response")])
def test_a_live_change_to_the_answer_knows_that_thinking_was_closed(
    before: Steering, chunk: int, closed: bool
) -> None:
    """Nothing waited for the marker when it was read; `MARKER` are tokens 6 and 7."""
    model, steered = tiny(), Steered(tiny())
    live = Live(before)
    tokens = TOKENS if closed else [*TOKENS[:6], 30, 77, *TOKENS[8:]]
    cache = steered.make_cache(live, P, MARKER)
    for start in range(0, 9, chunk):
        steered(mx.array([tokens[start : start + chunk]]), cache=cache)
    kv, state = cache[:-1], cache[-1]
    live.steering = Steering((V, 1.0), phase="answer")
    found = steered(mx.array([tokens[9:]]), cache=[*kv, state.extract(0)])
    for c in kv:
        c.trim(1)
    acts = steered.make_cache(Steering((V, 1.0)))[-1:]
    expected = model(
        mx.array([tokens[9:]]), cache=kv, taps=acts[0].taps(mx.array([[1]])) if closed else None
    )
    assert mx.array_equal(found, expected)
    state.trim(2)  # the marker is cut in two: its second half is yet to come
    assert state.taps(mx.array([[30 if closed else 1, 2]])).at(1, "mlp").streams[0].arrays[
        -1
    ].flatten().tolist() == [0.0, float(closed)]


def test_padding_is_no_marker() -> None:
    state = SteeringState([Row(Live(Steering((V, 1.0), phase="answer")), 2, (0,))])
    state.prepare(left_padding=[3])
    tap = state.taps(mx.array([[0, 0, 0, 5, 6]])).at(1, "mlp")
    assert isinstance(tap, EditTap)
    assert not np.array(tap.streams[0].arrays[-1]).any()


def test_trimming_forgets_an_answer_that_had_begun() -> None:
    state = SteeringState([Row(Live(Steering((V, 1.0), phase="answer")), 2, (9,))])
    for t in (1, 1, 9, 3):
        state.taps(mx.array([[t]]))
        state.advance(1)
    assert [a.tolist() for a in state.state] == [3]
    state.trim(2)
    assert np.array(state.state[0]) > 1000
    assert len(state.state) == 1


@pytest.mark.parametrize(
    "text", ["decay", "ramp", "decay(0)", "decay()", "ramp(-1)", "fade(3)", ""]
)
def test_schedules_that_do_not_exist(text: str) -> None:
    with pytest.raises(UsageError, match="schedule"):
        Schedule.parse(text)


def test_schedules_and_phases_want_the_prompt_length() -> None:
    with pytest.raises(UsageError, match="schedule 'decay' needs the prompt's length"):
        forward(tiny(), TOKENS, steering=Steering((V, 1.0), schedule="decay(3)"))
    assert Phase.parse("answer").needs_prompt_length
    assert Schedule.parse("constant").factor(-3) == 1.0


def test_a_prompt_of_which_nothing_is_left_has_no_tap() -> None:
    """The prompt's phase ends before its last token, and what reads leaves its first alone."""
    removes = Steering((vector(op="project"), 1.0), phase="prompt")
    assert removes.at(0, 2, 2) == ()
    assert removes.at(0, 3, 3)[0].weights == (0.0, 1.0, 0.0)
    assert Steering((vector(), 1.0), phase="prompt").at(0, 2, 2)[0].weights == (1.0, 0.0)
