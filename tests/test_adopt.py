"""Models of mlx-lm, adopted: a sample of dissimilar ones, and what holds for all of them."""

import json
import logging
from importlib import import_module
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from adopted import (
    TOKENS,
    check_against_a_changed_model,
    check_half,
    check_nodes,
    check_pieces,
    check_plain,
    check_rows,
    check_site,
    deviation,
    everything,
    layers_with,
    on_all,
    pair,
    sites_of,
    vector,
)
from mlx.utils import tree_flatten
from mlx_lm.generate import BatchGenerator
from mlx_lm.models import llama
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters
from tiny import CONFIGS, DTYPES, LAYERS, WIDTH, direction, nodes, tiny, tokenizer, twins
from tiny import vector as tiny_vector
from tiny_folder import write_tokenizer, write_weights
from zoo import build, config
from zoo import sites_of as sites_in_data

from mlxsteer import anatomy, edits, selftest, view
from mlxsteer.adopt import adopt
from mlxsteer.capture import capture, capturing
from mlxsteer.errors import MlxsteerError, UsageError
from mlxsteer.extract import extract
from mlxsteer.generate import forward, generate_batch
from mlxsteer.loading import load
from mlxsteer.patch import patching
from mlxsteer.plan import EditTap, taps
from mlxsteer.runtime import Steered
from mlxsteer.selftest import report_of
from mlxsteer.steering import Steering
from mlxsteer.taps import SITES, Tap, Taps
from mlxsteer.vector import Vector

ADOPT = import_module("mlxsteer.adopt")  # the package's own `adopt` is the function
# parallel; norms around; attention or recurrence; two sums and a factor; tuples; loops; nested;
# a mixture with windows; several streams
SAMPLE = ["cohere2", "gemma2", "qwen3_next", "granitemoehybrid", "hunyuan", "nanbeige", "kimi_vl"]
SAMPLE += ["gpt_oss", "gemma3n"]
SITE_OF_EACH = [(a, site) for a in SAMPLE for site in sites_in_data(a)]


@pytest.mark.parametrize("architecture", SAMPLE)
def test_a_sample(architecture: str) -> None:
    model, theirs = pair(architecture)
    check_plain(model, theirs)
    assert sites_of(model) == sites_in_data(architecture)
    check_against_a_changed_model(model, theirs)
    check_pieces(model)
    check_rows(model)
    check_nodes(architecture)


@pytest.mark.parametrize("architecture", ["gemma2", "hunyuan", "falcon_h1"])
def test_half_precision(architecture: str) -> None:
    check_half(architecture)


VARIANTS: dict[str, tuple[str, dict[str, Any], int]] = {
    "sequential": ("gpt_neox", {"use_parallel_residual": False}, 16),
    "parallel": ("stablelm", {"use_parallel_residual": True}, 12),
    "dense": ("granitemoehybrid", {"num_local_experts": None}, 16),
    "no residual mixing": ("kimi_k3", {"text_config": {"attn_res_block_size": None}}, 16),
    "one loop": ("nanbeige", {"num_loops": 1}, 16),
    "normed loops": ("nanbeige", {"num_loops": 3, "skip_loop_final_norm": True}, 48),
    "moe as mlp": ("gemma4_text", {"enable_moe_block": False}, 16),
    "nested llama": ("mistral3", {"text_config": {"model_type": "llama"}}, 16),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(variant: str) -> None:
    """What a config changes in how a family's blocks join."""
    architecture, changes, taps_ = VARIANTS[variant]
    model, theirs = (build(architecture, **changes) for _ in range(2))
    model = adopt(model)
    assert model.report.taps == taps_
    check_plain(model, theirs)
    check_against_a_changed_model(model, theirs)
    for site in sites_of(model):
        check_site(model, site)


@pytest.mark.parametrize(("architecture", "site"), SITE_OF_EACH)
def test_a_site(architecture: str, site: str) -> None:
    check_site(pair(architecture)[0], site)


# Where there is a definition of ours, both agree


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", CONFIGS)
def test_our_definitions_agree(family: str, dtype: str) -> None:
    """Every value at every site is the same; steered, up to rounding at `resid_mid` alone."""
    ours, theirs = twins(dtype, family=family)
    model = adopt(theirs)
    assert model.args.hidden_size == WIDTH
    tokens = mx.array([[5, 17, 3, 80, 41, 9]])
    found = []
    for each in (ours, model):
        wanted, kept = capturing(range(LAYERS), list(SITES))
        each(tokens, taps=wanted)
        found.append(kept)
    for layer in range(LAYERS):
        for site in SITES:
            assert mx.array_equal(found[0][layer][site], found[1][layer][site])
    for site in SITES:
        steering = Steering((tiny_vector((1, 2), site=site, scale=2.0), 0.7))
        a, b = (forward(each, tokens, steering=steering) for each in (ours, model))
        if site == "resid_post" or (site != "resid_mid" and dtype == "float32"):
            assert mx.array_equal(a, b), site
        assert deviation(a, b) < (1e-5 if dtype == "float32" else 0.05)
        assert not mx.array_equal(forward(model, tokens), b)


OPERATORS: dict[str, dict[str, Any]] = {
    "project": {"op": "project"},
    "clamp": {"op": "clamp", "targets": np.array([1.5, -2.0], np.float32)},
    "window": {"phase": "2:5"},
    "norms kept": {},
}


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("site", SITES)
def test_every_operator_does_what_it_does_in_ours(site: str, operator: str) -> None:
    ours, theirs = twins()
    model = adopt(theirs)
    v = tiny_vector((1, 2), site=site, scale=1.0, **OPERATORS[operator])
    steering = Steering((v, 0.8), keep_norm=operator == "norms kept")
    tokens = mx.array([[5, 17, 3, 80, 41, 9]])
    a, b = (forward(each, tokens, steering=steering) for each in (ours, model))
    assert deviation(a, b) < 1e-5
    assert deviation(a, forward(model, tokens)) > 1e-4


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_what_is_carried_is_the_change(scale: float, weighted: bool) -> None:
    """`carry` against the formula, for additions and for what reads; and where it may not be so."""
    target, read = (mx.random.normal((2, 3, WIDTH), key=mx.random.key(k)) for k in (1, 2))
    row = mx.array(direction())
    ones, zero = mx.ones((1,)), mx.zeros((1,))
    project = edits.read_and_write(row[None], zero, zero, -ones, row[None])
    for edit in (edits.add(3 * row), project):
        made = edits.weighted(edit, mx.array([1.0, 0.0, 0.5])[None, :, None]) if weighted else edit
        change = edits.apply(read, (made,)) - read
        carried = edits.carry(target, read, (made,), scale)
        assert mx.allclose(carried, target + change / scale, atol=1e-5)
        assert mx.allclose(carried, target + change, atol=1e-3) == (scale == 1)
        assert Tap.carry(EditTap((made,), ()), target, read, stream=False, scale=scale).shape == (
            carried.shape
        )
    for own in (edits.add(row), project):
        assert mx.array_equal(edits.carry(read, read, (own,)), edits.apply(read, (own,)))


@pytest.mark.parametrize("axis", [0, 2])
@pytest.mark.parametrize("weighted", [False, True])
def test_what_is_carried_to_several_streams(axis: int, weighted: bool) -> None:
    """Each gets the change of its row's mean; there are as many rows and tokens as streams."""
    streams = mx.random.normal((3, 3, 3, WIDTH), key=mx.random.key(1))
    read = streams.mean(axis, keepdims=axis > 0)
    rows = mx.random.normal((3, 1, WIDTH), key=mx.random.key(2))
    ones, zero = mx.ones((3, 1)), mx.zeros((3, 1))
    project = edits.read_and_write(rows, zero, zero, -ones, rows)
    weight = mx.random.uniform(shape=(3, 3, 1), key=mx.random.key(3))
    for edit in (edits.add(rows), project):
        made = edits.weighted(edit, weight) if weighted else edit
        mean = streams.mean(axis)
        change = mx.expand_dims(edits.apply(mean, (made,)) - mean, axis)
        carried = edits.carry(streams, read, (made,))
        assert mx.allclose(carried, streams + change, atol=1e-4)
        for wrong in (mx.swapaxes(change, *((1, 2) if axis == 0 else (0, 1))), -change):
            assert not mx.allclose(carried, streams + wrong, atol=1e-2)


def test_streams_that_lie_between_cost_one_node() -> None:
    check_nodes("deepseek_v41")
    check_rows(pair("deepseek_v41")[0])


def test_additions_are_carried_in_the_dtype_of_the_stream() -> None:
    x = mx.random.normal((1, 3, WIDTH)).astype(mx.bfloat16)
    for scale in (1.0, 0.25):
        mx.eval(x)
        carried = edits.carry(x, x * scale, (edits.add(mx.array(direction())),), scale)
        assert (carried.dtype, nodes(carried)) == (mx.bfloat16, 1)


def test_patching() -> None:
    """A whole run put into another at one layer makes the rest of it that run."""
    model, _ = pair("gemma2")
    other = mx.flip(TOKENS, 1)
    for site in ("resid_post", "resid_mid"):
        wanted, kept = capturing([1], [site])
        clean = forward(model, other, taps=wanted)
        patched = forward(model, TOKENS, taps=patching(kept))
        assert deviation(clean, patched) < 1e-4
        assert deviation(clean, forward(model, TOKENS)) > 1e-2


def test_real_weights_in_the_class_of_mlx_lm(smollm2_gguf: Path) -> None:
    ours, _ = load(smollm2_gguf)
    theirs = llama.Model(llama.ModelArgs.from_dict(vars(ours.args)))
    theirs.update(ours.parameters())
    model = adopt(theirs)
    assert model.report.taps == 120
    row = direction(width=576)
    for site in SITES:
        v = Vector.from_rows("v", dict.fromkeys(range(10, 20), 4 * row), site=site)
        a, b = (forward(m, TOKENS, steering=Steering((v, 1.0))) for m in (ours, model))
        assert deviation(a, b) < 1e-4
        assert deviation(a, forward(model, TOKENS)) > 1e-2


# Nothing is copied, nothing is left behind


def state(module: nn.Module) -> list[tuple[Any, ...]]:
    """Return every module, its class, and the identities of all that it holds."""
    return [
        (
            name,
            id(m),
            type(m),
            {k: id(v) for k, v in m.items()},
            {k: id(v) for k, v in vars(m).items()},
        )
        for name, m in module.named_modules()
    ]


@pytest.mark.parametrize("architecture", ["gemma2", "qwen3_next", "phixtral"])
def test_weights_are_shared_and_modules_untouched(architecture: str) -> None:
    theirs = build(architecture)
    before = state(theirs)
    model = adopt(theirs)
    assert state(theirs) == before
    inside = state(model)
    forward(model, TOKENS, steering=on_all(model, 1.0))
    with pytest.raises(RuntimeError, match="in the middle"):
        model(TOKENS, taps=Taps({(1, "mlp"): Failing()}))
    assert state(model) == inside
    assert state(theirs) == before
    a, b = (dict(tree_flatten(m.parameters())) for m in (theirs, model))
    assert a.keys() == b.keys()
    assert all(a[name] is b[name] for name in a)
    assert isinstance(model, type(theirs))


def test_nothing_stands_in_the_way_where_nothing_is_steered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, theirs = pair("llama")
    v = vector(model, (1,), "resid_post", scale=1.0)
    monkeypatch.setattr(ADOPT, "_view", lambda *_: pytest.fail("a view was made"))
    for idle in (Steering(), Steering((v, 0.0)), Steering((v, 1.0), phase="50:60")):
        steered = Steered(model, idle)
        assert mx.array_equal(steered(TOKENS, cache=steered.make_cache()), theirs(TOKENS))
    with pytest.raises(pytest.fail.Exception, match="a view was made"):
        forward(model, TOKENS, steering=Steering((v, 1.0)))


class Failing(Tap):
    def stream(self, h: mx.array) -> mx.array:
        raise RuntimeError("in the middle of it")


def test_a_call_within_a_call() -> None:
    """A tap that runs the model itself, with other taps, disturbs nothing."""
    model, _ = pair("llama")
    v = vector(model, (1,), "resid_post", scale=1.0)
    steering = Steering((v, 1.0))
    found = []

    class Asking(Tap):
        def stream(self, h: mx.array) -> mx.array:
            found.append(forward(model, TOKENS, steering=steering))
            return h

    logits = forward(model, TOKENS, taps=Taps({(2, "mlp"): Asking(), (0, "attn"): Asking()}))
    assert mx.array_equal(logits, forward(model, TOKENS))
    expected = forward(model, TOKENS, steering=steering)
    assert len(found) == 2
    assert all(mx.array_equal(f, expected) for f in found)


# Adapters and packed weights


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("first", [True, False])
def test_adapters(kind: str, first: bool, tmp_path: Path) -> None:
    """Adapters of mlx-lm, put in before or after adoption, act and are steered."""
    theirs = build("gemma2")
    plain = theirs(TOKENS)
    parameters = {
        "rank": 4,
        "scale": 2.0,
        "dropout": 0.0,
        "keys": ["self_attn.q_proj", "mlp.up_proj"],
    }
    donor = build("gemma2")
    linear_to_lora_layers(donor, 2, parameters, use_dora=kind == "dora")
    weights = {
        name: mx.random.normal(w.shape, key=mx.random.key(i)) * 0.2
        for i, (name, w) in enumerate(dict(tree_flatten(donor.parameters())).items())
        if "lora_" in name or name.endswith(".m")
    }
    assert weights
    mx.save_safetensors(str(tmp_path / "adapters.safetensors"), weights)
    values = {"fine_tune_type": kind, "num_layers": 2, "lora_parameters": parameters}
    (tmp_path / "adapter_config.json").write_text(json.dumps(values))
    if first:
        load_adapters(theirs, str(tmp_path))
    model = adopt(theirs)
    if not first:
        load_adapters(model, str(tmp_path))
    expected = load_adapters(build("gemma2"), str(tmp_path))
    expected.eval()
    model.eval()
    assert mx.array_equal(model(TOKENS), expected(TOKENS))
    assert not mx.allclose(model(TOKENS), plain, atol=1e-3)
    for site in SITES:
        check_site(model, site)


def adapted(model: nn.Module, kind: str) -> nn.Module:
    """Put random adapters into a model, as mlx-lm does."""
    parameters = {"rank": 4, "scale": 2.0, "dropout": 0.0, "keys": ["self_attn.q_proj"]}
    linear_to_lora_layers(model, 2, parameters, use_dora=kind == "dora")
    drawn = {
        name: 0.2 * mx.random.normal(array.shape, key=mx.random.key(len(name)))
        for name, array in dict(tree_flatten(model.trainable_parameters())).items()
        if "lora_" in name
    }
    assert len(drawn) == 4
    model.load_weights(list(drawn.items()), strict=False)
    model.eval()
    return model


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_adapters_on_our_definitions(kind: str) -> None:
    """mlx-lm puts them into ours as into its own; both agree, steered too."""
    ours, theirs = twins()
    tokens = mx.array([[5, 17, 3, 80]])
    before = ours(tokens)
    model, other = adapted(ours, kind), adopt(adapted(theirs, kind))
    plain = forward(model, tokens)
    assert mx.array_equal(plain, forward(other, tokens))
    assert not mx.allclose(plain, before, atol=1e-3)
    steering = Steering((tiny_vector((1, 2), scale=2.0), 0.7))
    steered = forward(model, tokens, steering=steering)
    assert mx.array_equal(steered, forward(other, tokens, steering=steering))
    assert not mx.allclose(steered, plain, atol=1e-2)


@pytest.mark.parametrize(
    ("mode", "group", "bits"),
    [("affine", 32, 4), ("mxfp4", 32, 4), ("nvfp4", 16, 4), ("mxfp8", 32, 8)],
)
def test_packed_weights(mode: str, group: int, bits: int) -> None:
    theirs = build("mixtral")
    plain = theirs(TOKENS)
    nn.quantize(theirs, group_size=group, bits=bits, mode=mode)
    model = adopt(theirs)
    packed = [m for m in model.modules() if "scales" in m]
    assert {m.mode for m in packed} == {mode}
    assert len(packed) > 20
    assert mx.array_equal(model(TOKENS), theirs(TOKENS))
    assert not mx.array_equal(model(TOKENS), plain)
    for site in SITES:
        check_site(model, site)
    check_rows(model)


# The self-test, and what it must not pass


def adopt_broken(monkeypatch: pytest.MonkeyPatch, architecture: str, words: str) -> None:
    with pytest.raises(MlxsteerError, match=words) as caught:
        adopt(build(architecture))
    assert "is not steered" in str(caught.value)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    adopt(build(architecture))


def shifted(route: view.Route, by: int) -> view.Route:
    """The same place in a block further up or down, all round."""
    return tuple((step + by) % 4 if isinstance(step, int) else step for step in route)


@pytest.mark.parametrize("by", [1, -1])
def test_hooks_on_the_wrong_layer(monkeypatch: pytest.MonkeyPatch, by: int) -> None:
    right = view.View.hook
    monkeypatch.setattr(
        view.View, "hook", lambda self, route, hook: right(self, shifted(route, by), hook)
    )
    adopt_broken(monkeypatch, "gemma2", r"layer \d is run after resid_post of layer \d")


@pytest.mark.parametrize("part", ["post_attention_layernorm", "post_feedforward_layernorm"])
def test_a_sub_layer_of_the_wrong_layer(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    right = view.View.hook

    def wrong(self: view.View, route: view.Route, hook: view.Hook) -> None:
        right(self, shifted(route, 1) if route[-1] == part else route, hook)

    monkeypatch.setattr(view.View, "hook", wrong)
    adopt_broken(monkeypatch, "gemma2", r"is run after|fired 0 times")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("post_attention_layernorm", "attn_out of layer 0 fired 0 times"),
        ("post_feedforward_layernorm", "mlp_out of layer 0 fired 0 times"),
        (2, "resid_mid of layer 2 fired 0 times"),
    ],
)
def test_a_hook_that_is_never_called(
    monkeypatch: pytest.MonkeyPatch, name: str | int, words: str
) -> None:
    right = view.View.hook

    def some(self: view.View, route: view.Route, hook: view.Hook) -> None:
        if route[-1] != name:
            right(self, route, hook)

    monkeypatch.setattr(view.View, "hook", some)
    with pytest.raises(MlxsteerError, match=words):
        adopt(build("gemma2"))


def test_a_block_that_is_run_more_often_than_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ADOPT, "words_of", lambda block: anatomy.Words())
    with pytest.raises(MlxsteerError, match="of layer 0 fired 2 times: this nanbeige is not"):
        adopt(build("nanbeige"))


@pytest.mark.parametrize("place", ["apply", "carry"])
def test_a_sign_that_is_turned(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    right = getattr(edits, place)

    def turned(x: mx.array, *rest: Any) -> mx.array:
        edited: mx.array = right(x, *rest)
        return 2 * x - edited

    monkeypatch.setattr(edits, place, turned)
    adopt_broken(monkeypatch, "gemma2", "an edit at .* of layer 1")


def test_an_edit_that_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edits, "carry", lambda target, *rest: target)
    adopt_broken(monkeypatch, "gemma2", "an edit at attn_out of layer 1")


def test_an_edit_of_what_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tap fires and shows the edit, and the layer above gets what was there before."""

    output = ADOPT._Pass.output

    def dropped(self: Any, h: mx.array) -> mx.array:
        output(self, h)
        return h

    monkeypatch.setattr(ADOPT._Pass, "output", dropped)
    adopt_broken(monkeypatch, "gemma2", "an edit at resid_post of layer 1 does not reach layer 2")


def test_an_edit_that_does_not_reach_the_logits() -> None:
    """Where the last layer is tested there is none above to look at."""
    model = build("gemma2", num_hidden_layers=2)
    assert adopt(model).report.tested == (1,)
    model.model.norm.weight = -mx.ones_like(model.model.norm.weight)  # one more is its factor
    with pytest.raises(MlxsteerError, match="attn_out of layer 1 does not reach the logits"):
        adopt(model)


def test_an_edit_that_leaks_below(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once an edit acts, every later pass of the test starts from other embeddings."""
    right = selftest._Test.passed

    def leaking(self: selftest._Test, inner: Any) -> Any:
        if inner:
            self.model.model.embed_tokens.weight = 1.001 * self.model.model.embed_tokens.weight
        return right(self, inner)

    monkeypatch.setattr(selftest._Test, "passed", leaking)
    adopt_broken(monkeypatch, "gemma2", "an edit at attn_out of layer 1 moves attn_out of layer 0")


def test_the_checks_of_a_site_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of every architecture, of models that break after they were adopted."""
    model, theirs = adopt(build("gemma2")), build("gemma2")
    right, carry = view.View.hook, edits.carry
    with monkeypatch.context() as broken:
        broken.setattr(view.View, "hook", lambda v, route, h: right(v, shifted(route, 1), h))
        for site in SITES:
            with pytest.raises((AssertionError, MlxsteerError)):
                check_site(model, site)
        with pytest.raises((AssertionError, MlxsteerError)):
            check_against_a_changed_model(model, theirs)
    for wrong in (lambda t, *rest: 2 * t - carry(t, *rest), lambda t, *rest: t):
        with monkeypatch.context() as broken:
            broken.setattr(edits, "carry", wrong)
            for site in SITES:
                with pytest.raises(AssertionError, match=r"not the edit|not what joins|did not"):
                    check_site(model, site)
            with pytest.raises(AssertionError):
                check_against_a_changed_model(model, theirs)
    with pytest.raises(AssertionError):
        check_plain(model, build("gemma2", seed=1))
    for site in SITES:
        check_site(model, site)


WRONG = {
    "gemma2": anatomy.Words(),
    "granite": anatomy.Words(scale=lambda block: 1.0),
    "cohere2": anatomy.Words(scale=None, sums=True),
    "llama": anatomy.Words("mlp", "self_attn"),
    "rwkv7": anatomy.Words("ffn", "attn"),
    "falcon_h1": anatomy.Words("self_attn"),
    "granitemoehybrid": anatomy.Words(mlp="block_sparse_moe mlp", scale=lambda b: 0.4),
    "talkie": anatomy.Words("attn_gain", "mlp_gain", argument=1),
}


@pytest.mark.parametrize("architecture", WRONG)
def test_wrong_words(monkeypatch: pytest.MonkeyPatch, architecture: str) -> None:
    wrong = WRONG[architecture]
    monkeypatch.setattr(ADOPT, "words_of", lambda block: wrong)
    monkeypatch.setattr(ADOPT, "Words", lambda *a, **k: pytest.fail("gave in"))
    with pytest.raises((MlxsteerError, pytest.fail.Exception)) as caught:
        adopt(build(architecture))
    assert "self-test" in str(caught.value) or "gave in" in str(caught.value)


def test_a_family_that_nobody_described(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The usual words do not hold: its output can be steered, and the other sites are refused."""
    monkeypatch.delitem(anatomy.WORDS, "gemma2")
    with caplog.at_level(logging.WARNING, "mlxsteer"):
        model = adopt(build("gemma2"))
    assert "only resid_post" in caplog.text
    assert sites_of(model) == ("resid_post",)
    check_site(model, "resid_post")
    with pytest.raises(UsageError, match="no site attn_out: it has resid_post"):
        Steered(model, Steering((vector(model, (1,), "attn_out", scale=1.0), 1.0)))


def test_the_report() -> None:
    model, _ = pair("qwen3_next")
    assert report_of(model) is model.report
    assert adopt(model) is model
    assert model.report.tested == (1, 2)
    assert "passed: 16 taps in 4 layers" in str(model.report)
    ours, _ = twins()
    report = report_of(ours)
    assert (report.taps, report.width, report.vocabulary) == (16, WIDTH, 96)


@pytest.mark.parametrize("family", CONFIGS)
def test_our_definitions_read_rows_of_different_lengths(family: str) -> None:
    """`reads_ragged` takes it for granted."""
    assert report_of(tiny(family=family)).ragged


# What is refused


class Bare(nn.Module):
    """A model of which nothing is known but its layers."""

    def __init__(self, layers: Any) -> None:
        super().__init__()
        self.model_type = "bare"
        vars(self)["layers"] = layers


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Linear(2, 2), "Linear has no list of layers: give a language model of mlx-lm"),
        (Bare([]), "Bare has no list of layers"),
        (Bare("abc"), "Bare has no list of layers"),
        (Bare([1, 2]), "layer 0 of this Bare is not in its tree"),
        (Bare([nn.Linear(2, 2)]), "layer 0 of this Bare is not in its tree"),
    ],
)
def test_no_model(model: nn.Module, words: str) -> None:
    with pytest.raises(MlxsteerError, match=words):
        adopt(model)


def test_sites_and_layers_that_are_not_there() -> None:
    model, _ = pair("cohere2")
    v = vector(model, (1,), "resid_mid", scale=1.0)
    words = "layer 1 of this cohere2 has no site resid_mid: it has attn_out, mlp_out, resid_post"
    for refused in (
        lambda: Steered(model, Steering((v, 1.0))),
        lambda: forward(model, TOKENS, steering=Steering((v, 1.0))),
        lambda: capture(model, [[1, 2]], sites=["resid_mid"], layers=[1]),
        lambda: forward(model, TOKENS, taps=capturing([1], ["resid_mid"])[0]),
        lambda: forward(model, TOKENS, taps=taps(((Steering((v, 1.0)).at(0, 13, None)),))),
    ):
        with pytest.raises(UsageError, match=words):
            refused()
    with pytest.raises(UsageError, match="layer 9 does not exist: the model has 0 to 3"):
        forward(model, TOKENS, taps=capturing([9], ["resid_post"])[0])


def test_layers_differ() -> None:
    model, _ = pair("nemotron-nas")
    assert [tuple(s for s in SITES if has[s]) for has in model.sites] == [
        ("attn_out", "resid_mid", "mlp_out", "resid_post"),
        ("mlp_out", "resid_post"),
        ("attn_out", "resid_post"),
        ("attn_out", "resid_mid", "mlp_out", "resid_post"),
    ]
    assert layers_with(model, "mlp_out") == (0, 1, 3)
    v = vector(model, (0, 1, 2), "mlp_out", scale=1.0)
    with pytest.raises(UsageError, match="layer 2 of this nemotron-nas has no site mlp_out"):
        Steered(model, Steering((v, 1.0)))


def test_a_vector_of_another_width() -> None:
    model, _ = pair("cohere2")
    with pytest.raises(MlxsteerError, match=r"width 64 .* the model has width 32 and 4 layers"):
        Steered(model, Steering((tiny_vector(), 1.0)))


# From a folder to steered text


def write_zoo_folder(folder: Path, architecture: str, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    model = build(architecture, **changes)
    (folder / "config.json").write_text(json.dumps(config(architecture, **changes)))
    write_weights(folder, dict(tree_flatten(model.parameters())), 1)
    write_tokenizer(folder)
    return folder


@pytest.mark.parametrize("architecture", ["cohere2", "gpt2", "mamba2", "gemma4"])
def test_a_folder_is_adopted(architecture: str, tmp_path: Path) -> None:
    folder = write_zoo_folder(tmp_path / "Some-Model", architecture)
    model, tokenizer = load(folder)
    assert type(model).__module__ == f"mlx_lm.models.{architecture}"
    source = model.source
    assert (source.model_type, source.n_layers, source.hidden_size) == (architecture, 4, 32)
    theirs = build(architecture)
    assert mx.array_equal(model(TOKENS), theirs(TOKENS))
    pairs = [{"positive": f"yes {i}", "negative": f"no {i}"} for i in range(6)]
    v = extract(model, tokenizer, pairs, calibrate=False, layers=(1, 2))
    assert v.model == source
    assert (
        deviation(forward(model, TOKENS), forward(model, TOKENS, steering=Steering((v, 2.0)))) > 0
    )


def test_our_own_definition_is_used_where_there_is_one(tmp_path: Path) -> None:
    model, _ = load(write_zoo_folder(tmp_path / "model", "qwen3"))
    assert type(model).__module__ == "mlxsteer.arch.qwen3"
    assert not hasattr(model, "report")


def test_packed_folders_stay_packed(tmp_path: Path) -> None:
    folder = write_zoo_folder(tmp_path / "model", "cohere2")
    model = build("cohere2")
    nn.quantize(model, group_size=32, bits=8, mode="mxfp8")
    values = config("cohere2")
    values["quantization"] = {"group_size": 32, "bits": 8, "mode": "mxfp8"}
    (folder / "config.json").write_text(json.dumps(values))
    write_weights(folder, dict(tree_flatten(model.parameters())), 1)
    kept, _ = load(folder, keep_quantized=True)
    assert kept.source.quantization == "8bit-g32-mxfp8"
    assert any("scales" in m for m in kept.modules())
    assert mx.array_equal(kept(TOKENS), model(TOKENS))
    dense, _ = load(folder, keep_quantized=False)
    assert not any("scales" in m for m in dense.modules())
    assert deviation(dense(TOKENS), kept(TOKENS)) < 1e-4


def test_requests_of_a_batch_keep_their_own() -> None:
    """Through mlx-lm's continuous batching, on a model of recurrent and attention layers."""
    model, _ = pair("qwen3_next")
    steered = Steered(model)
    prompts = [[1, 2, 3, 4, 5], [7, 8], list(range(9, 20))]
    v = vector(model, (1, 2), "resid_post", scale=8.0)
    steerings = [Steering((v, 1.0)), Steering(), Steering((v, -1.0))]

    def written(chosen: list[int]) -> list[list[int]]:
        caches = [steered.make_cache(steerings[i]) for i in chosen]
        generator = BatchGenerator(steered, max_tokens=5, prefill_step_size=4)
        uids = generator.insert([prompts[i] for i in chosen], caches=caches)
        rows: dict[int, list[int]] = {uid: [] for uid in uids}
        while answers := generator.next_generated():
            for answer in answers:
                rows[answer.uid].append(answer.token)
        generator.close()
        return [rows[uid] for uid in uids]

    together = written([0, 1, 2])
    assert together == [written([i])[0] for i in range(3)]
    steerings = [Steering()] * 3
    unsteered = written([0, 1, 2])
    assert [a == b for a, b in zip(together, unsteered, strict=True)] == [False, True, False]


@pytest.mark.parametrize(
    ("architecture", "ragged"),
    [("olmo2", True), ("gemma2", False), ("phi3small", False), ("gpt_bigcode", False)],
)
def test_prompts_of_different_lengths_are_answered_as_alone(
    architecture: str, ragged: bool
) -> None:
    """Classes of mlx-lm that cannot batch them are given one at a time."""
    model, words = adopt(build(architecture)), tokenizer()
    assert model.report.ragged == ragged
    assert ("rows of different lengths" in str(model.report)) != ragged
    prompts = [[3, 4, 5], [6, 7, 8, 9, 10, 11], [9, 4], [7, 7, 7, 7], [1, 2]]
    v = vector(model, (1,), "resid_post", scale=8.0)
    steerings = [Steering((v, strength)) for strength in (0.0, 1.0, -1.0, 1.0, 0.0)]
    together: list[list[int]] = [[] for _ in prompts]
    for row, token in generate_batch(model, words, prompts, steering=steerings, max_tokens=4):
        together[row].append(token)
    for prompt, steering, found in zip(prompts, steerings, together, strict=True):
        text = list(prompt)
        for _ in found:
            text.append(int(np.argmax(forward(model, text, steering=steering)[-1])))
        assert found == text[len(prompt) :]
        assert len(found) == 4


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model_type": "nosuch"}, r"'nosuch' is known neither to mlxsteer nor to mlx-lm 0"),
        ({"model_type": "cache"}, r"'cache' is known neither"),
        ({"model_type": "..cohere2"}, r"'..cohere2' is known neither"),
        ({"model_type": ""}, r"'' is known neither"),
        ({"model_type": "olmo"}, "olmo"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "this bert is an encoder"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "this t5 is an encoder"),
        (
            {"model_type": "gemma3_text", "use_bidirectional_attention": True},
            "this gemma3_text is an encoder",
        ),
        ({"model_type": "cohere2", "model_file": "mine.py"}, "wants to run its own code"),
        ({"model_type": "gpt2"}, "cannot be used"),
        ({**config("gpt2"), "n_layer": 1 << 40}, "n_layer is 1099511627776, not a number from"),
        (config("iquestloopcoder"), "damaged|has no weights"),
    ],
)
def test_configs_that_are_refused(values: dict[str, Any], words: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(MlxsteerError, match=words) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_vector_carries_the_places_of_an_adopted_model() -> None:
    """What is extracted at a site is what passes it."""
    model, _ = pair("granitemoehybrid")
    found = capture(model, [np.array(TOKENS[0]).tolist()], sites=list(SITES), positions=-1)
    seen = everything(model)
    for site in SITES:
        for layer in range(4):
            assert np.allclose(found[site][0, layer], np.array(seen[layer, site][0, -1]), atol=1e-4)
    assert isinstance(vector(model, (1,), "attn_out", scale=1.0), Vector)
