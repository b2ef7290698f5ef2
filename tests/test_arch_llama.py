"""Our Llama equals mlx-lm's, bit for bit: prefill, chunks, decode, batch, every dtype."""

from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.generate import BatchGenerator
from mlx_lm.models.cache import make_prompt_cache
from tiny import DTYPES, LAYERS, nodes, tiny, twins

from mlxsteer.arch import FAMILIES, get_classes
from mlxsteer.errors import MlxsteerError
from mlxsteer.taps import Taps

VARIANTS: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"tie_word_embeddings": False},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"model_type": "mistral", "head_dim": 32, "rope_theta": 1e6},
    "llama3-rope": {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    "sliding": {
        "layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2),
        "sliding_window": 8,
    },
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_parity(dtype: str, variant: str) -> None:
    ours, theirs = twins(dtype, **VARIANTS[variant])
    tokens = mx.random.randint(0, 96, (1, 21), key=mx.random.key(1))
    assert mx.array_equal(ours(tokens), theirs(tokens))
    caches = ours.make_cache(), theirs.make_cache()
    for start, stop in ((0, 9), (9, 16), (16, 17), (17, 18), (18, 21)):
        chunk = tokens[:, start:stop]
        a, b = ours(chunk, cache=caches[0]), theirs(chunk, cache=caches[1])
        assert a.dtype == b.dtype
        assert mx.array_equal(a, b)
    assert [type(c) for c in caches[0]] == [type(c) for c in caches[1]]


def test_parity_can_fail() -> None:
    ours, _ = twins()
    _, other = twins(seed=1)
    tokens = mx.array([[1, 2, 3]])
    assert not mx.array_equal(ours(tokens), other(tokens))


@pytest.mark.parametrize("dtype", DTYPES)
def test_batch_parity(dtype: str) -> None:
    prompts = [[1, 2, 3, 4, 5], [7, 8], [9, 10, 11, 12, 13, 14, 15, 16]]
    written = []
    for model in twins(dtype):
        generator = BatchGenerator(model, max_tokens=6, prefill_step_size=3)
        uids = generator.insert(prompts)
        rows: dict[int, list[int]] = {uid: [] for uid in uids}
        while answers := generator.next_generated():
            for answer in answers:
                rows[answer.uid].append(answer.token)
        generator.close()
        written.append(rows)
    assert written[0] == written[1]
    assert all(len(row) == 6 for row in written[0].values())


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_plain_graph_is_theirs(dtype: str) -> None:
    counts = []
    for model in twins(dtype):
        cache = make_prompt_cache(model)
        mx.eval(model(mx.array([[1, 2, 3]]), cache=cache))
        counts.append(nodes(model(mx.array([[4]]), cache=cache)))
    assert counts[0] == counts[1]


def test_empty_taps_are_the_plain_path() -> None:
    model = tiny()
    tokens = mx.array([[1, 2, 3]])
    assert mx.array_equal(model(tokens), model(tokens, taps=Taps({})))


def test_input_embeddings() -> None:
    ours, theirs = twins()
    tokens = mx.array([[1, 2, 3]])
    embeddings = ours.model.embed_tokens(tokens) + 0.5
    a = ours(tokens, input_embeddings=embeddings)
    assert mx.array_equal(a, theirs(tokens, input_embeddings=embeddings))
    assert not mx.array_equal(a, ours(tokens))


def test_sanitize_drops_what_is_not_used() -> None:
    model = tiny()
    kept = model.sanitize(
        {"lm_head.weight": mx.zeros(1), "model.layers.0.self_attn.rotary_emb.inv_freq": mx.zeros(1)}
    )
    assert kept == {}
    assert "lm_head.weight" in tiny(tie_word_embeddings=False).sanitize(
        {"lm_head.weight": mx.zeros(1)}
    )


def test_families_are_found_and_others_refused_by_name() -> None:
    for model_type in FAMILIES:
        model_class, _ = get_classes({"model_type": model_type})
        assert model_class.__name__ == "Model"
    with pytest.raises(MlxsteerError, match="model_type 'mamba'") as e:
        get_classes({"model_type": "mamba"})
    assert "llama" in str(e.value)
