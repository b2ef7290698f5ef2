"""The cache of DeepSeek-V4: snapshots, files, batches of any lengths; nothing is trimmed."""

import copy
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.generate import BatchGenerator
from mlx_lm.models.cache import can_trim_prompt_cache, trim_prompt_cache
from tiny import direction, nodes
from tiny_deepseek import VOCABULARY, deepseek

from mlxsteer.arch.deepseek_v4 import Model
from mlxsteer.arch.deepseek_v4_cache import DeepseekV4BatchCache, DeepseekV4Cache
from mlxsteer.errors import MlxsteerError
from mlxsteer.prompt_cache import load_prompt_cache, read, reuse, save_prompt_cache
from mlxsteer.runtime import Steered
from mlxsteer.steering import Steering
from mlxsteer.vector import Vector

IDS = np.random.default_rng(1).integers(2, VOCABULARY, 70).tolist()
V = Vector.from_rows("v", {2: 4 * direction(0)})


@pytest.fixture(scope="module")
def model() -> Model:
    return deepseek()


def filled(model: Model, tokens: list[int]) -> list[Any]:
    cache = model.make_cache()
    mx.eval(model(mx.array([tokens]), cache=cache))
    return cache


def after(model: Model, cache: list[Any], tokens: list[int]) -> mx.array:
    return model(mx.array([tokens]), cache=cache)


def test_a_step_leaves_nothing_to_compute(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever evaluates the logits evaluates all that later steps need; else a chain grows."""

    def lazy() -> int:
        cache = filled(model, IDS[:5])
        for token in IDS[5:12]:
            mx.eval(after(model, cache, [token]))
        return nodes(*(array for c in cache for array in c.arrays))

    assert lazy() == 0
    monkeypatch.setattr(mx, "depends", lambda out, _: out)
    assert lazy() > 0


def test_a_copy_is_a_snapshot_that_costs_nothing(model: Model) -> None:
    cache = filled(model, IDS[:23])
    kept = copy.deepcopy(cache)
    assert all(
        a is b for x, y in zip(cache, kept, strict=True)
        for a, b in zip(x.arrays, y.arrays, strict=True)
    )  # fmt: skip
    first = after(model, cache, IDS[23:31])
    assert cache[0].offset == 31
    assert kept[0].offset == 23
    assert mx.array_equal(after(model, kept, IDS[23:31]), first)


def test_it_cannot_be_trimmed(model: Model) -> None:
    cache = filled(model, IDS[:10])
    assert not can_trim_prompt_cache(cache)
    assert not trim_prompt_cache(cache, 3)
    assert not hasattr(cache[0], "trim")
    assert (cache[0].size(), cache[0].empty()) == (10, False)
    assert cache[0].nbytes == cache[0].window.nbytes
    assert model.make_cache()[0].empty()


def test_it_is_saved_and_goes_on(model: Model, tmp_path: Path) -> None:
    """In the middle of windows of every kind, and with the record of what acted."""
    steered, steering = Steered(model), Steering((V, 1.0))
    cache = read(steered, IDS[:27], steering)
    save_prompt_cache(tmp_path / "c.safetensors", cache, {"mine": "1"})
    loaded, metadata = load_prompt_cache(tmp_path / "c.safetensors")
    assert metadata == {"mine": "1"}
    assert [type(c) for c in loaded] == [type(c) for c in cache]
    with pytest.raises(MlxsteerError, match="from position 0 on: read\\(\\) the tokens again"):
        reuse(loaded, Steering())
    reuse(loaded, steering)
    a, b = (steered(mx.array([IDS[27:40]]), cache=c) for c in (cache, loaded))
    assert mx.array_equal(a, b)
    anew = steered(mx.array([IDS[:40]]), cache=steered.make_cache(steering))[:, 27:]
    assert mx.allclose(a, anew, atol=1e-4)
    assert not mx.allclose(a, after(model, filled(model, IDS[:27]), IDS[27:40]), atol=1e-2)


def test_an_unknown_cache_is_refused(tmp_path: Path) -> None:
    for name in ("copy", "NoCache"):  # the first is a name in mlx-lm's module, but no cache
        arrays = {"0.0": mx.zeros((1,))}
        header = {"0.x": "", "1.0": name, "2.0": ""}
        mx.save_safetensors(str(tmp_path / "c.safetensors"), arrays, header)
        with pytest.raises(MlxsteerError, match="no prompt cache"):
            load_prompt_cache(tmp_path / "c.safetensors")


def merged(model: Model, prompts: list[list[int]]) -> list[DeepseekV4BatchCache]:
    rows = [filled(model, prompt) for prompt in prompts]
    return [c.merge([row[i] for row in rows]) for i, c in enumerate(rows[0])]


def test_rows_of_a_batch_are_as_alone(model: Model) -> None:
    """Also after some left, others came, and with padding on the right."""
    prompts = [IDS[:30], IDS[5:8], IDS[9:28]]
    batch = merged(model, prompts)
    alone = [filled(model, prompt) for prompt in prompts]

    def check(tokens: list[list[int]], rows: list[int]) -> None:
        together = model(mx.array(tokens), cache=batch)
        for i, row in enumerate(rows):
            one = after(model, alone[row], tokens[i])
            assert mx.allclose(together[i], one[0], atol=1e-4)
            assert batch[0].rows[i].offset == alone[row][0].offset

    check([[4], [5], [6]], [0, 1, 2])
    check([[4, 5, 6, 7, 8], [5, 1, 2, 3, 4], [6, 9, 8, 7, 6]], [0, 1, 2])
    for c in batch:
        c.filter([2, 0])
    check([[7], [8]], [2, 0])
    alone.append(filled(model, IDS[:17]))
    for c, more in zip(batch, merged(model, [IDS[:17]]), strict=True):
        c.extend(more)
    check([[7, 1], [8, 2], [9, 3]], [2, 0, 3])
    out = [c.extract(1) for c in batch]
    assert all(isinstance(c, DeepseekV4Cache) for c in out)
    assert mx.allclose(
        after(model, out, [3]), after(model, copy.deepcopy(alone[0]), [3]), atol=1e-4
    )
    lengths, padded = (
        [6, 2, 4],
        [[*IDS[i : i + n], *[0] * (6 - n)] for i, n in enumerate((6, 2, 4))],
    )
    for c in batch:
        c.prepare(lengths=lengths, right_padding=[6 - n for n in lengths])
    parts = [model(mx.array(padded)[:, a:b], cache=batch) for a, b in ((0, 3), (3, 6))]
    logits = mx.concatenate(parts, axis=1)
    for c in batch:
        c.finalize()
    for i, row in enumerate((2, 0, 3)):
        one = after(model, alone[row], padded[i][: lengths[i]])
        assert mx.allclose(logits[i, : lengths[i]], one[0], atol=1e-4)
    check([[7], [8], [9]], [2, 0, 3])


def test_padding_that_counts_would_be_noticed(model: Model) -> None:
    batch, plain = merged(model, [IDS[:9], IDS[:6]]), merged(model, [IDS[:9], IDS[:6]])
    tokens = mx.array([IDS[20:24], [*IDS[20:22], 0, 0]])
    for c in plain:
        c.prepare(lengths=[4, 2], right_padding=[0, 2])
    for cache in (batch, plain):
        model(tokens, cache=cache)
        for c in cache:
            c.finalize()
    a, b = (model(mx.array([[3], [4]]), cache=cache) for cache in (batch, plain))
    assert mx.allclose(a[0], b[0], atol=1e-5)
    assert not mx.allclose(a[1], b[1], atol=1e-2)


def test_bad_batches_are_refused(model: Model) -> None:
    row = filled(model, IDS[:4])
    batch = [c.merge([c, c]) for c in row]
    model(mx.array([[1], [2]]), cache=batch)
    assert (row[0].offset, batch[0].size()) == (4, 5)  # what was merged stays as it was
    with pytest.raises(MlxsteerError, match="3 rows of tokens for a cache of 2 requests"):
        model(mx.array([[1], [2], [3]]), cache=batch)
    with pytest.raises(MlxsteerError, match="padded on the left: pad the right"):
        batch[0].prepare(left_padding=[1, 0])
    assert (batch[0].size(), batch[0].empty(), batch[0].is_trimmable()) == (5, False, False)
    assert batch[0].nbytes == sum(row.nbytes for row in batch[0].rows)


def written(model: Any, prompts: list[list[int]], late: list[int]) -> list[list[int]]:
    """Let mlx-lm write several answers, one of which comes in later."""
    generator = BatchGenerator(model, max_tokens=6, prefill_step_size=4, completion_batch_size=3)
    uids = generator.insert(prompts)
    rows: dict[int, list[int]] = {uid: [] for uid in uids}
    while answers := generator.next_generated():
        for answer in answers:
            rows[answer.uid].append(answer.token)
        if late:
            uids += generator.insert([late])
            rows[uids[-1]], late = [], []
    generator.close()
    return [rows[uid] for uid in uids]


def test_mlx_lm_writes_batches(model: Model) -> None:
    prompts, late = [IDS[:11], IDS[3:5], IDS[30:60]], IDS[12:33]
    together = written(model, prompts, late)
    assert together == [written(model, [p], [])[0] for p in (*prompts, late)]
    steered = Steered(model, Steering((V, 2.0)))
    moved = written(steered, prompts, late)
    assert moved == [written(steered, [p], [])[0] for p in (*prompts, late)]
    assert moved != together


def test_equal_lengths_stay_together(model: Model) -> None:
    """A cache of one request serves rows of equal length: one computation for all."""
    rows = mx.array([IDS[:20], IDS[20:40]])
    cache = model.make_cache()
    logits = [model(rows[:, a:b], cache=cache) for a, b in ((0, 13), (13, 14), (14, 20))]
    for i in range(2):
        one = model(rows[i : i + 1])
        assert mx.allclose(mx.concatenate(logits, axis=1)[i], one[0], atol=1e-4)
