"""Caches are shared where the edits on them agree, and refused where they do not."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.models.cache import save_prompt_cache as mlx_save
from tiny import tiny, vector

from mlxsteer.errors import MlxsteerError
from mlxsteer.prompt_cache import load_prompt_cache, read, reuse, save_prompt_cache
from mlxsteer.record import Record
from mlxsteer.runtime import Steered
from mlxsteer.state import Live, Row
from mlxsteer.steering import Steering

PROMPT = [5, 6, 7, 8, 9, 10, 11]
V, W = vector((1,), seed=1, scale=6.0), vector((2,), seed=2, scale=6.0)
EVERYWHERE = Steering((V, 1.0))
RESPONSE = Steering((V, 1.0), phase="response")


def going_on(steered: Steered, cache, tokens: list[int]) -> mx.array:
    return steered(mx.array([tokens]), cache=cache)


def test_a_prompt_untouched_by_response_steering_is_shared() -> None:
    """The same numbers as reading all anew, under the new steering."""
    steered = Steered(tiny())
    cache = read(steered, PROMPT[:5], RESPONSE, prompt_length=7)
    other = Steering((W, -1.0), phase="response")
    shared = going_on(steered, reuse(cache, other, prompt_length=7), [10, 11, 3])
    anew = going_on(steered, read(steered, PROMPT[:5], other, prompt_length=7), [10, 11, 3])
    assert mx.array_equal(shared, anew)
    off = read(steered, PROMPT[:5])
    assert not mx.allclose(shared, going_on(steered, off, [10, 11, 3]), atol=1e-2)


@pytest.mark.parametrize(
    ("then", "now", "differs"),
    [
        (EVERYWHERE, Steering((V, 0.5)), 0),
        (EVERYWHERE, Steering((W, 1.0)), 0),
        (EVERYWHERE, Steering(), 0),
        (Steering(), EVERYWHERE, 0),
        (EVERYWHERE, Steering((V, 1.0), keep_norm=True), 0),
        (EVERYWHERE, Steering((V, 1.0), schedule="decay(4)"), 0),
        (Steering((V, 1.0), phase="2:4"), Steering((V, 1.0), phase="2:5"), 4),
        (Steering((V, 1.0), phase="3:"), Steering(), 3),
        (RESPONSE, Steering(), None),
        (EVERYWHERE, Steering((V, 1.0), (W, 0.0)), None),
        (EVERYWHERE, Steering((V, 1.0), (W, 1.0), phase="0:"), 0),
        (Steering((V, 1.0), phase="0:5"), EVERYWHERE, None),
        (Steering((V, 1.0), phase="6:9"), Steering((W, 1.0), phase="5:"), None),
    ],
)
def test_reuse_is_refused_only_where_the_edits_differ(then, now, differs: int | None) -> None:
    steered = Steered(tiny())
    cache = read(steered, PROMPT[:5], then, prompt_length=7)
    if differs is None:
        shared = going_on(steered, reuse(cache, now, prompt_length=7), [10, 11])
        anew = going_on(steered, read(steered, PROMPT[:5], now, prompt_length=7), [10, 11])
        assert mx.allclose(shared, anew, atol=1e-5)
        return
    with pytest.raises(MlxsteerError, match=f"from position {differs} on"):
        reuse(cache, now, prompt_length=7)
    kept = [c.trim(5 - differs) for c in cache]
    assert set(kept) == {5 - differs}
    reuse(cache, now, prompt_length=7)
    shared = going_on(steered, cache, PROMPT[differs:])
    anew = going_on(
        steered, read(steered, PROMPT[:differs] or [], now, prompt_length=7), PROMPT[differs:]
    )
    assert mx.allclose(shared, anew, atol=1e-4)


def test_a_live_change_extends_the_record() -> None:
    steered, live = Steered(tiny()), Live(EVERYWHERE)
    cache = read(steered, PROMPT[:3], live)
    live.steering = Steering((V, 2.0))
    going_on(steered, cache, PROMPT[3:6])
    with pytest.raises(MlxsteerError, match="from position 3 on"):
        reuse(cache, EVERYWHERE)
    assert len(cache[-1].record.spans) == 2
    again = read(steered, PROMPT[:6], Steering((V, 2.0)))
    assert reuse(again, Steering((V, 2.0))) is again


@pytest.mark.parametrize("chunks", [[7], [1] * 7, [3, 4]])
def test_the_record_does_not_depend_on_chunks(chunks: list[int]) -> None:
    steering = Steering((V, 1.0), phase="2:6") + Steering((W, 1.0), phase="response")
    record, start = Record(), 0
    for length in chunks:
        record.add(steering, start, length, 5)
        start += length
    assert record == Record.expected(steering, 7, 5)
    assert Record.from_json(record.to_json()) == record


def test_saved_and_loaded(tmp_path: Path) -> None:
    steered = Steered(tiny())
    cache = read(steered, PROMPT[:5], EVERYWHERE)
    expected = going_on(steered, reuse(read(steered, PROMPT[:5], EVERYWHERE), EVERYWHERE), [10])
    path = tmp_path / "cache.safetensors"
    save_prompt_cache(path, cache, {"mine": "yes"})
    assert [p.name for p in tmp_path.iterdir()] == ["cache.safetensors"]
    loaded, metadata = load_prompt_cache(path)
    assert metadata == {"mine": "yes"}
    with pytest.raises(MlxsteerError, match="from position 0 on"):
        reuse(loaded, Steering())
    assert mx.array_equal(going_on(steered, reuse(loaded, EVERYWHERE), [10]), expected)


@pytest.mark.parametrize("cut", [4, 5])
@pytest.mark.parametrize("watched", [True, False])
@pytest.mark.parametrize("saved", [True, False])
def test_a_cache_knows_whether_thinking_was_closed(
    saved: bool, watched: bool, cut: int, tmp_path: Path
) -> None:
    """The marker are tokens 3 and 4 of the prompt; cut in two, or all of it in the cache."""
    steered, marker = Steered(tiny()), (PROMPT[3], PROMPT[4])
    answer = Steering((vector((1, 2), scale=5.0), 1.0), phase="answer")
    known: dict[str, Any] = {"prompt_length": len(PROMPT), "think_end": marker}
    cache = read(steered, PROMPT[:cut], answer if watched else None, **known)
    if saved:
        save_prompt_cache(tmp_path / "x.safetensors", cache)
        cache, _ = load_prompt_cache(tmp_path / "x.safetensors")
    on = going_on(steered, reuse(cache, answer, **known), PROMPT[cut:])
    whole = steered(mx.array([PROMPT]), cache=steered.make_cache(answer, **known))
    assert mx.allclose(on, whole[:, cut:], atol=1e-4)
    plain = steered(mx.array([PROMPT]), cache=steered.make_cache(Steering()))
    assert not mx.allclose(on, plain[:, cut:], atol=1e-2)


def test_a_damaged_position_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    mlx_save(str(path), read(Steered(tiny()), PROMPT)[:-1], {"mlxsteer.position": "many"})
    with pytest.raises(MlxsteerError, match=r"x.safetensors: its position is damaged .*'many'"):
        load_prompt_cache(path)


def test_damaged_thinking_is_refused() -> None:
    row = Row(Live(), 3, (9,))
    for text in ("", "[]", "{}", '{"end": 3, "prompt_length": 2}', '{"end": ["x"]}'):
        with pytest.raises(MlxsteerError, match="damaged"):
            row.thinking_from_json(text)
    row.thinking_from_json('{"end": null, "prompt_length": null}')
    assert (row.think_end, row.prompt_length) == (None, None)


def test_a_cache_of_mlx_lm_was_read_unsteered(tmp_path: Path) -> None:
    model = tiny()
    cache = make_prompt_cache(model)
    model(mx.array([PROMPT[:5]]), cache=cache)
    path = tmp_path / "plain.safetensors"
    mlx_save(str(path), cache)
    loaded, _ = load_prompt_cache(path)
    assert loaded[-1].size() == 5
    steered = Steered(model)
    with pytest.raises(MlxsteerError, match="from position 0"):
        reuse(loaded, EVERYWHERE)
    on = going_on(steered, reuse(loaded, RESPONSE, prompt_length=7), [10, 11])
    assert mx.array_equal(
        on, going_on(steered, read(steered, PROMPT[:5], RESPONSE, prompt_length=7), [10, 11])
    )


def test_what_is_no_cache_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(MlxsteerError, match="no prompt cache"):
        load_prompt_cache(path)
    with pytest.raises(MlxsteerError, match="no prompt cache"):
        load_prompt_cache(tmp_path / "missing.safetensors")
    with pytest.raises(MlxsteerError, match="damaged"):
        Record.from_json("[1]")
    with pytest.raises(MlxsteerError, match="carries no steering"):
        reuse(tiny().make_cache(), Steering())
    steered = Steered(tiny())
    state = steered.make_cache()[-1]
    with pytest.raises(MlxsteerError, match="2 requests"):
        reuse([state.merge([state, state])], Steering())
