"""The seam to mlx-lm: its own loops run steered unchanged, each request with its own vector."""

import copy
from typing import Any

import mlx.core as mx
import mlx_lm.models.llama as mlx_llama
import pytest
from mlx_lm.generate import BatchGenerator, generate_step
from mlx_lm.models.cache import (
    LRUPromptCache,
    can_trim_prompt_cache,
    make_prompt_cache,
    trim_prompt_cache,
)
from tiny import CONFIG, DTYPES, tiny, vector

from mlxsteer.errors import MlxsteerError, UsageError
from mlxsteer.runtime import Live, Steered, SteeringState
from mlxsteer.steering import Steering

PROMPTS = [[1, 2, 3, 4, 5, 6, 7, 8, 9], [40, 41], [70, 71, 72, 73, 74]]


def steerings() -> list[Steering]:
    """Three different ones, strong enough that each changes what is written."""
    return [
        Steering((vector((1, 2), seed=1, scale=6.0), 1.0)),
        Steering((vector((0, 3), seed=2, site="attn_out", scale=6.0), -1.0), phase="response"),
        Steering(
            (vector((2,), seed=3, scale=5.0), 1.0),
            (vector((1,), seed=4, site="mlp_out", scale=4), 2.0),
        ),
    ]


def single(model, prompt: list[int], steering: Steering | None, n: int = 8, **options) -> list[int]:
    """Write `n` tokens with mlx-lm's single-request loop."""
    steered = Steered(model)
    cache = steered.make_cache(steering, prompt_length=len(prompt))
    step = generate_step(mx.array(prompt), steered, max_tokens=n, prompt_cache=cache, **options)
    return [int(token) for token, _ in step]


def batched(model, steerings: list[Steering], order=(0, 1, 2), n: int = 8, step: int = 2):
    """Write `n` tokens of every prompt with mlx-lm's continuous batching, prefilled in chunks."""
    steered = Steered(model)
    generator = BatchGenerator(steered, max_tokens=n, prefill_step_size=step, prefill_batch_size=2)
    caches = [steered.make_cache(steerings[i], prompt_length=len(PROMPTS[i])) for i in order]
    uids = generator.insert([list(PROMPTS[i]) for i in order], caches=caches)
    rows: dict[int, list[int]] = {uid: [] for uid in uids}
    while answers := generator.next_generated():
        for answer in answers:
            rows[answer.uid].append(answer.token)
    generator.close()
    return [rows[uid] for uid in uids]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_three_requests_with_three_vectors_in_one_batch(order) -> None:
    model, all_three = tiny(), steerings()
    alone = [single(model, PROMPTS[i], all_three[i]) for i in order]
    assert batched(model, all_three, order) == alone
    plain = [single(model, PROMPTS[i], None) for i in order]
    assert all(a != p for a, p in zip(alone, plain, strict=True))


def test_the_seam_twins_fail() -> None:
    """Rows mixed up, the sign turned, no steering at all: each would be seen."""
    model, all_three = tiny(), steerings()
    alone = [single(model, PROMPTS[i], all_three[i]) for i in range(3)]
    assert batched(model, [all_three[1], all_three[2], all_three[0]]) != alone
    assert batched(model, [-1 * s for s in all_three]) != alone
    assert batched(model, [Steering()] * 3) != alone


def test_requests_that_join_and_leave_keep_their_vectors() -> None:
    model, all_three = tiny(), steerings()
    steered = Steered(model)
    generator = BatchGenerator(steered, prefill_step_size=3, prefill_batch_size=1)
    rows: dict[int, list[int]] = {}
    lengths = {0: 3, 1: 9, 2: 6}
    pending = [0, 1, 2]
    names: dict[int, int] = {}
    while True:
        if pending:
            i = pending.pop(0)
            cache = steered.make_cache(all_three[i], prompt_length=len(PROMPTS[i]))
            (uid,) = generator.insert([list(PROMPTS[i])], max_tokens=[lengths[i]], caches=[cache])
            names[uid], rows[i] = i, []
        _, answers = generator.next()
        for answer in answers:
            rows[names[answer.uid]].append(answer.token)
        if not pending and all(len(rows[i]) == lengths[i] for i in rows):
            break
    generator.close()
    for i in range(3):
        assert rows[i] == single(model, PROMPTS[i], all_three[i], n=lengths[i])


@pytest.mark.parametrize("chunk", [1, 3, 2048])
def test_chunked_prefill_writes_the_same(chunk: int) -> None:
    model = tiny()
    for steering in steerings():
        whole = single(model, PROMPTS[0], steering)
        assert single(model, PROMPTS[0], steering, prefill_step_size=chunk) == whole


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_first_token_is_steered_in_the_response_phase(dtype: str) -> None:
    model, v = tiny(dtype), vector((3,), scale=30.0)
    steered = Steered(model)
    prompt = mx.array([PROMPTS[0]])
    first = {}
    for phase in ("response", "all", "prompt"):
        cache = steered.make_cache(Steering((v, 1.0), phase=phase), prompt_length=9)
        first[phase] = steered(prompt, cache=cache)[0, -1]
    plain = model(prompt)[0, -1]
    # an edit of the last layer acts on its own position alone
    assert mx.array_equal(first["response"], first["all"])
    assert mx.array_equal(first["prompt"], plain)
    assert not mx.array_equal(first["response"], plain)


def test_a_live_change_alters_token_n_plus_2_and_none_before() -> None:
    model, v = tiny(), vector((1, 2), scale=25.0)
    prompt = PROMPTS[0]
    off = single(model, prompt, None, n=16)
    for n in (1, 4, 7):
        steered, live = Steered(model), Live()
        cache = steered.make_cache(live, prompt_length=len(prompt))
        logits, written = [], []
        stepper = generate_step(mx.array(prompt), steered, max_tokens=16, prompt_cache=cache)
        for i, (token, logprobs) in enumerate(stepper, 1):
            written.append(token)
            logits.append(logprobs)
            if i == n:
                live.steering = Steering((v, 1.0))
        # tokens are counted from 1: 1 .. n+1 are as they were, and n+2 is the first whose
        # distribution changed
        plain = [p for _, p in generate_step(mx.array(prompt), model, max_tokens=16)]
        same = [bool(mx.array_equal(a, b)) for a, b in zip(logits, plain, strict=True)]
        assert same[: n + 1] == [True] * (n + 1)
        assert same[n + 1] is False
        assert written[: n + 1] == off[: n + 1]
        assert written != off


def test_a_live_change_reaches_a_request_inside_a_batch() -> None:
    model, v = tiny(), vector((1, 2), scale=25.0)
    steered = Steered(model)
    live = Live()
    generator = BatchGenerator(steered, max_tokens=12, prefill_step_size=4)
    caches = [steered.make_cache(live, prompt_length=9), steered.make_cache(Steering())]
    uids = generator.insert([list(PROMPTS[0]), list(PROMPTS[1])], caches=caches)
    rows: dict[int, list[int]] = {uid: [] for uid in uids}
    while answers := generator.next_generated():
        for answer in answers:
            rows[answer.uid].append(answer.token)
        if len(rows[uids[0]]) == 3:
            live.steering = Steering((v, 1.0))
    generator.close()
    off = single(model, PROMPTS[0], None, n=12)
    assert rows[uids[0]][:4] == off[:4]
    assert rows[uids[0]] != off
    assert rows[uids[1]] == single(model, PROMPTS[1], None, n=12)


def test_a_changed_strength_is_not_frozen_into_compiled_code() -> None:
    model, v = tiny(), vector((1,), scale=1.0)
    steered = Steered(model)
    seen = []
    for strength in (1.0, 2.0, -3.0, 0.0):
        steered.steering = Steering((v, strength))
        seen.append(steered(mx.array([PROMPTS[0]])))
    assert mx.array_equal(seen[3], model(mx.array([PROMPTS[0]])))
    assert all(not mx.array_equal(seen[i], seen[j]) for i in range(4) for j in range(i))


def test_a_model_that_ignores_its_taps_is_refused() -> None:
    class Deaf(mlx_llama.Model):
        def __call__(self, inputs, cache=None, taps=None):
            return super().__call__(inputs, cache)

    deaf = Deaf(mlx_llama.ModelArgs.from_dict(CONFIG))
    steered = Steered(deaf, Steering((vector(), 1.0)))
    with pytest.raises(MlxsteerError, match="2 of 2 taps never fired"):
        steered(mx.array([[1, 2]]))
    steered.steering = Steering()
    assert steered(mx.array([[1, 2]])).shape == (1, 2, 96)


def test_a_foreign_cache_is_refused() -> None:
    model = tiny()
    with pytest.raises(MlxsteerError, match=r"Steered\.make_cache"):
        Steered(model)(mx.array([[1]]), cache=model.make_cache())


def test_a_foreign_vector_is_refused_even_live() -> None:
    steered, live = Steered(tiny(hidden_size=32, head_dim=8)), Live()
    cache = steered.make_cache(live)
    live.steering = Steering((vector(), 1.0))
    with pytest.raises(MlxsteerError, match="width"):
        steered(mx.array([[1]]), cache=cache)
    with pytest.raises(MlxsteerError, match="width"):
        steered.make_cache(Steering((vector(), 1.0)))


def test_the_cache_protocol_counts_positions_per_row() -> None:
    steered = Steered(tiny())
    a, b = (steered.make_cache(Steering(), prompt_length=n)[-1] for n in (4, 9))
    a.advance(3)
    both = a.merge([a, b])
    both.prepare(lengths=[5, 2], right_padding=[0, 3])
    both.advance(5)
    both.finalize()
    assert [r.position for r in both.rows] == [8, 2]
    assert both.size() == 8
    assert both.trim(1) == 1
    twin = copy.deepcopy(both)
    twin.filter([1])
    assert [r.position for r in twin.rows] == [1]
    both.extend(twin)
    assert [r.position for r in both.rows] == [7, 1, 1]
    one = both.extract(0)
    assert (one.prompt_length, one.rows[0].position) == (4, 7)
    one.advance(1)
    assert both.rows[0].position == 7
    assert (both.nbytes, both.state, both.is_trimmable()) == (0, [], True)
    with pytest.raises(UsageError, match="3 requests"):
        _ = both.steering
    both.prepare(left_padding=[0, 1, 0])
    assert [r.position for r in both.rows] == [7, 0, 1]


def test_prompt_caches_are_reused_and_trimmed_with_their_positions() -> None:
    model, v = tiny(), vector((1,), scale=8.0)
    steering = Steering((v, 1.0), phase="3:6")
    steered = Steered(model)
    whole = steered(mx.array([PROMPTS[0]]), cache=steered.make_cache(steering))
    cache = steered.make_cache(steering)
    steered(mx.array([PROMPTS[0]]), cache=cache)
    assert can_trim_prompt_cache(cache)
    trimmed: Any = trim_prompt_cache(cache, 5)  # mlx-lm annotates a list and returns a number
    assert trimmed == 5
    store = LRUPromptCache()
    store.insert_cache("m", PROMPTS[0][:4], cache)
    again, rest = store.fetch_nearest_cache("m", PROMPTS[0])
    assert rest == PROMPTS[0][4:]
    assert isinstance(again[-1], SteeringState)
    assert again[-1].rows[0].position == 4
    tail = steered(mx.array([rest]), cache=again)
    assert mx.allclose(tail, whole[:, 4:], atol=1e-4)
    plain = model(mx.array([PROMPTS[0]]))
    assert not mx.allclose(tail, plain[:, 4:], atol=1e-2)


def test_the_view_is_an_mlx_lm_model() -> None:
    model = tiny()
    steered = Steered(model)
    assert steered.layers is model.layers
    assert len(make_prompt_cache(steered)) == len(model.layers) + 1
    embeddings = model.model.embed_tokens(mx.array([[1, 2]]))
    assert mx.array_equal(
        steered(mx.array([[1, 2]]), input_embeddings=embeddings), model(mx.array([[1, 2]]))
    )


def test_quantized_kv_runs_steered() -> None:
    model = tiny(hidden_size=128, head_dim=32)
    v = vector((1, 2), scale=9.0)
    wide = type(v).from_rows(
        "w", {n: mx.repeat(mx.array(r), 2).tolist() for n, r in v.rows().items()}
    )
    steering = Steering((wide, 1.0))
    options = {"kv_bits": 8, "kv_group_size": 32, "quantized_kv_start": 0}
    steered = single(model, PROMPTS[0], steering, **options)
    assert len(steered) == 8
    assert steered != single(model, PROMPTS[0], None, **options)
