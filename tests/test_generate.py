"""Text from prompts: templates, seeds, end tokens, batches; steered and not."""

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.generate import stream_generate as mlx_stream_generate
from tiny import tiny, tokenizer, vector

from mlxsteer import forward, generate, stream_generate
from mlxsteer.capture import capturing
from mlxsteer.errors import MlxsteerError, UsageError
from mlxsteer.generate import BATCH, Sampling, encode, generate_batch, generate_many
from mlxsteer.runtime import Live
from mlxsteer.steering import Steering

STRONG = Steering((vector((1, 2), scale=20.0), 1.0))


def test_unsteered_text_is_mlx_lms() -> None:
    model, words = tiny(), tokenizer()
    prompt = encode(model, words, "how was your day")
    theirs = "".join(r.text for r in mlx_stream_generate(model, words, prompt, max_tokens=12))
    assert generate(model, words, "how was your day", max_tokens=12) == theirs
    off = Steering((vector(), 0.0))
    assert generate(model, words, "how was your day", max_tokens=12, steering=off) == theirs
    assert generate(model, words, "how was your day", max_tokens=12, steering=STRONG) != theirs
    opposite = generate(model, words, "how was your day", max_tokens=12, steering=-1 * STRONG)
    assert opposite != generate(model, words, "how was your day", max_tokens=12, steering=STRONG)


def test_the_template_is_used_unless_raw() -> None:
    model, words = tiny(), tokenizer()
    chat = words.decode(encode(model, words, "be short", system="be a pirate"))
    assert chat == "<system> be a pirate <end> <user> be short <end> <assistant>"
    assert words.decode(encode(model, words, "be short", raw=True)) == "be short"
    said = [{"role": "user", "content": "why"}, {"role": "assistant", "content": "short"}]
    assert encode(model, words, [3, 4, 5]) == [3, 4, 5]
    assert words.decode(encode(model, words, [*said, said[0]])).count("<user>") == 2


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("", {"raw": True}, "empty"),
        ([], {}, "prompt"),
        ("be", {"raw": True, "system": "x"}, "raw"),
        ("be " * 300, {}, "256"),
    ],
)
def test_prompts_that_cannot_be_read(prompt, options, message: str) -> None:
    with pytest.raises((UsageError, MlxsteerError), match=message):
        encode(tiny(), tokenizer(), prompt, **options)


def test_the_seed_decides() -> None:
    model, words = tiny(), tokenizer()
    texts = [
        generate(model, words, "why", max_tokens=16, sampling=Sampling(temp=2.0, seed=seed))
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    "wrong",
    [
        {"temp": -1},
        {"temp": float("inf")},
        {"temp": float("nan")},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"top_k": -1},
    ],
)
def test_sampling_refuses(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Sampling(**wrong)  # type: ignore[arg-type]


def test_max_tokens_below_one() -> None:
    one = stream_generate(tiny(), tokenizer(), "why", max_tokens=0)
    many = generate_batch(tiny(), tokenizer(), ["why"], max_tokens=0)
    for stream in (one, many):
        with pytest.raises(UsageError, match="max_tokens is 0"):
            next(iter(stream))


def test_a_prompt_cache_is_for_mlx_lms_own_loop() -> None:
    with pytest.raises(UsageError, match=r"mlx_lm.stream_generate a Steered.*reuse"):
        generate(tiny(), tokenizer(), "why", prompt_cache=[])


def test_every_end_token_ends() -> None:
    model, words = tiny(), tokenizer()
    full = [r.token for r in stream_generate(model, words, "why", max_tokens=12)]
    for end in (full[3], full[5]):
        words.eos_token_ids = {1, end}
        short = [r.token for r in stream_generate(model, words, "why", max_tokens=12)]
        assert short[: full.index(end)] == full[: full.index(end)]
        assert len(short) <= full.index(end) + 1


def test_a_live_steering_may_change_while_text_is_written() -> None:
    model, words, live = tiny(), tokenizer(), Live()
    tokens = []
    for r in stream_generate(model, words, "why", max_tokens=16, steering=live):
        tokens.append(r.token)
        if len(tokens) == 4:
            live.steering = STRONG
    plain = [r.token for r in stream_generate(model, words, "why", max_tokens=16)]
    assert tokens[:5] == plain[:5]
    assert tokens != plain


def rows_of(stream: Iterator[tuple[int, int]], count: int) -> list[list[int]]:
    rows: list[list[int]] = [[] for _ in range(count)]
    for row, token in stream:
        rows[row].append(token)
    return rows


def test_many_prompts_at_once_each_with_its_own_steering() -> None:
    model, words = tiny(), tokenizer()
    prompts = ["why", "how was your day", "tell me about the sea please"]
    each = [STRONG, None, -1 * STRONG]
    got = rows_of(generate_batch(model, words, prompts, steering=each, max_tokens=10), 3)
    for prompt, steering, row in zip(prompts, each, got, strict=True):
        alone = stream_generate(model, words, prompt, steering=steering, max_tokens=10)
        expected = [r.token for r in alone if r.finish_reason != "stop"]
        assert row == expected
    same = rows_of(generate_batch(model, words, prompts, steering=STRONG, max_tokens=10), 3)
    assert same[0] == got[0]
    assert same[1] != got[1]
    with pytest.raises(UsageError, match="2 steerings for 3 prompts"):
        next(generate_batch(model, words, prompts, steering=[STRONG, None]))


def test_more_prompts_than_rows_keep_their_order_and_their_steering() -> None:
    model, words = tiny(), tokenizer()
    prompts = [[3 + i % 40, 5, 6 + i % 7][: 1 + i % 3] for i in range(BATCH + 9)]
    each = [None if i % 3 else STRONG for i in range(len(prompts))]
    seen: list[tuple[str, int, int]] = []
    got = list(
        generate_many(
            model,
            words,
            prompts,
            steering=each,
            max_tokens=4,
            progress=lambda *step: seen.append(step),
        )
    )
    for i in (0, 1, BATCH - 1, BATCH, BATCH + 8):
        alone = generate_many(model, words, [prompts[i]], steering=each[i], max_tokens=4)
        assert got[i] == next(alone)
    assert seen[0] == ("writing answers", 0, len(prompts))
    assert seen[-1] == ("writing answers", len(prompts), len(prompts))
    other = generate_many(model, words, [prompts[0]], max_tokens=4)
    assert got[0] != next(other)


def test_what_prompts_begin_with_is_read_once_under_each_steering(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, words = tiny(), tokenizer()
    begin = [3 + i % 40 for i in range(20)]
    prompts = [[*begin, 5 + i, 6 + i % 3][: 21 + i % 2] for i in range(12)]
    early = Steering((vector((1, 2), scale=20.0), 1.0), phase="3:9")
    each = [(None, STRONG, early)[i % 3] for i in range(12)]
    texts = [
        stream_generate(model, words, p, steering=s, max_tokens=6)
        for p, s in zip(prompts, each, strict=True)
    ]
    alone = [[r.token for r in text if r.finish_reason != "stop"] for text in texts]
    assert alone[0] != alone[1] != alone[2] != alone[0]
    read: list[tuple[int, ...]] = []
    call = type(model).__call__

    def counted(self: Any, tokens: mx.array, *given: Any, **named: Any) -> mx.array:
        read.append(tokens.shape)
        found: mx.array = call(self, tokens, *given, **named)
        return found

    monkeypatch.setattr(type(model), "__call__", counted)
    got = rows_of(generate_batch(model, words, prompts, steering=each, max_tokens=6), 12)
    assert got == alone
    assert read[:3] == [(1, 20)] * 3
    assert max(length for _, length in read[3:]) < 20
    read.clear()
    other = [[2 + i % 40 for i in range(30)] + [7 + i] for i in range(6)]
    both = [*prompts[:6], *other]  # as under two system prompts
    list(generate_batch(model, words, both, steering=STRONG, max_tokens=1))
    assert read[:2] == [(1, 20), (1, 30)]
    read.clear()
    monkeypatch.setattr("mlxsteer.prompt_cache.CHUNK", 8)
    assert rows_of(generate_batch(model, words, prompts, steering=each, max_tokens=6), 12) == alone
    assert read[:3] == [(1, 8), (1, 8), (1, 4)]  # a long one is read in pieces
    read.clear()
    different = [Steering((vector((1, 2), scale=20.0), 1 + i / 9)) for i in range(12)]
    list(generate_batch(model, words, prompts, steering=different, max_tokens=1))
    assert read[0][0] == 12  # nothing would be saved


def test_forward_gives_float32_logits_of_one_or_many_rows() -> None:
    model = tiny("bfloat16")
    one = forward(model, [1, 2, 3], steering=STRONG)
    many = forward(model, [[1, 2, 3], [4, 5, 6]], steering=STRONG)
    assert (one.shape, many.shape) == ((3, 96), (2, 3, 96))
    assert one.dtype == many.dtype == mx.float32
    assert not mx.array_equal(one, forward(model, [1, 2, 3]))
    assert mx.array_equal(forward(model, [1, 2, 3]), model(mx.array([[1, 2, 3]]))[0])


def test_forward_with_taps_of_ones_own() -> None:
    model = tiny()
    taps, kept = capturing([2], ["mlp_out"])
    assert mx.array_equal(forward(model, [1, 2, 3], taps=taps), forward(model, [1, 2, 3]))
    assert kept[2]["mlp_out"].shape == (1, 3, 64)
    with pytest.raises(UsageError, match="not both"):
        forward(model, [1], taps=taps, steering=STRONG)
    with pytest.raises(UsageError, match="2 steerings for 1 rows"):
        forward(model, [1], steering=[STRONG, STRONG])


def test_response_steering_of_a_forward_pass() -> None:
    model = tiny()
    v = vector((3,), scale=5.0)
    plain = forward(model, [1, 2, 3, 4])
    late = forward(
        model, [1, 2, 3, 4], steering=Steering((v, 1.0), phase="response"), prompt_length=3
    )
    assert mx.array_equal(late[:2], plain[:2])
    assert not mx.array_equal(late[2], plain[2])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("weight", [mx.nan, mx.inf])
def test_a_model_that_gives_no_numbers_is_refused(dtype: str, weight: float) -> None:
    model, words = tiny(dtype), tokenizer()
    assert len(generate(model, words, "why", max_tokens=4)) > 0
    model.model.norm.weight[5] = weight
    with pytest.raises(MlxsteerError, match="its files are damaged"):
        generate(model, words, "why", max_tokens=4)
    with pytest.raises(MlxsteerError, match="its files are damaged"):
        list(generate_batch(model, words, ["why", "how"], max_tokens=4))


def test_a_strength_that_gives_no_numbers_is_named() -> None:
    model, words = tiny("float16"), tokenizer()
    far = Steering((vector(name="far"), 1e6))
    with pytest.raises(UsageError, match="far=1e\\+06 makes the model compute NaN: use less"):
        generate(model, words, "why", max_tokens=4, steering=far)
    many = generate_batch(model, words, ["why", "how"], max_tokens=4, steering=[None, far])
    with pytest.raises(UsageError, match="far=1e"):
        list(many)
    live = Live()
    stream = stream_generate(model, words, "why", max_tokens=16, steering=live)
    written = [next(stream).token for _ in range(4)]
    live.steering = far
    written.append(next(stream).token)  # the one in flight
    with pytest.raises(UsageError, match="far=1e"):
        next(stream)
    assert written == [r.token for r in stream_generate(model, words, "why", max_tokens=5)]
