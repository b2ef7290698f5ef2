"""Features of sparse autoencoders: what the vector does, against the autoencoder's own equations.

The tiny autoencoders are written by the safetensors and numpy packages in the layouts of SAELens,
Gemma Scope and EleutherAI's sparsify.
"""

import io
import json
import logging
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from mlxsteer.errors import MlxsteerError, UsageError
from mlxsteer.interop import load_vector, read_sae
from mlxsteer.plan import taps
from mlxsteer.steering import Acting
from mlxsteer.taps import SITES
from mlxsteer.vector import ModelRef, Vector, read_vector

Arrays = dict[str, np.ndarray]

WIDTH, FEATURES = 8, 5
RNG = np.random.default_rng(7)
X = RNG.normal(size=(40, WIDTH)) * 2
HOOK = "blocks.3.hook_resid_post"


def coder(**changes: Any) -> Arrays:
    """The arrays of a tiny autoencoder in SAELens's names; `...` leaves one out."""
    rng = np.random.default_rng(11)
    made = {
        "W_dec": rng.normal(size=(FEATURES, WIDTH)) * np.arange(1, FEATURES + 1)[:, None],
        "W_enc": rng.normal(size=(WIDTH, FEATURES)),
        "b_enc": rng.normal(size=FEATURES),
        "b_dec": rng.normal(size=WIDTH),
    }
    kept = {key: value for key, value in {**made, **changes}.items() if value is not ...}
    return {key: np.asarray(value, np.float32) for key, value in kept.items()}


def saelens(folder: Path, config: Any = None, arrays: Arrays | None = None) -> Path:
    """`sae_weights.safetensors` with a `cfg.json` beside it; `config=...` leaves it out."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "sae_weights.safetensors"
    save_file(coder() if arrays is None else arrays, path)
    if config is not ...:
        said = {"hook_name": HOOK, "architecture": "standard", **(config or {})}
        kept = {key: value for key, value in said.items() if value is not ...}
        (folder / "cfg.json").write_text(json.dumps(kept))
    return path


def gemma_scope(root: Path, repo: str = "gemma-scope-2b-pt-res", **changes: Any) -> Path:
    """`params.npz` in the folders of a Hub cache, with thresholds of JumpReLU."""
    folder = root / f"models--google--{repo}" / "snapshots" / "0" / "layer_3"
    folder = folder / "width_16k" / "average_l0_71"
    folder.mkdir(parents=True)
    threshold = np.linspace(0, 2, FEATURES)
    arrays: Any = coder(**{"threshold": threshold, **changes})
    np.savez(folder / "params.npz", **arrays)
    return folder / "params.npz"


def eleuther(folder: Path) -> Path:
    """`sae.safetensors` of sparsify, whose encoder is a linear layer."""
    arrays = coder()
    arrays["encoder.weight"] = np.ascontiguousarray(arrays.pop("W_enc").T)
    arrays["encoder.bias"] = arrays.pop("b_enc")
    folder.mkdir(parents=True)
    save_file(arrays, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"activation": "topk", "k": 2, "d_in": WIDTH}))
    return folder / "sae.safetensors"


def gemma_scope_2(folder: Path, **config: Any) -> Path:
    """`params.safetensors` in small letters, with a `config.json`."""
    arrays = coder(threshold=np.linspace(0, 2, FEATURES))
    folder.mkdir(parents=True)
    save_file({k.replace("W_", "w_"): v for k, v in arrays.items()}, folder / "params.safetensors")
    said = {"hf_hook_point_in": "model.layers.3.output", "architecture": "jump_relu", **config}
    (folder / "config.json").write_text(json.dumps(said))
    return folder / "params.safetensors"


def steered(v: Vector, strength: float = 1.0) -> np.ndarray:
    """What a strength of the vector makes of `X` at its site."""
    join, stream = SITES[v.site]
    tap = taps(((Acting(v, strength),),)).at(v.layers[0], join)
    x = mx.array(X[None].astype(np.float32))
    return np.array((tap.stream if stream else tap.write)(x)[0])


def rewritten(
    arrays: Arrays, feature: int, edit: Callable[[np.ndarray], np.ndarray], subtract: bool = True
) -> np.ndarray:
    """What the autoencoder itself does: `X` with its reconstruction's feature edited.

    The whole sum over features is made twice, with the feature as it is and with the edited one.
    """
    wide = {key: value.astype(np.float64) for key, value in arrays.items()}
    x = X - wide["b_dec"] if subtract else X
    before = np.maximum(x @ wide["W_enc"] + wide["b_enc"], 0)
    if "threshold" in wide:
        before = np.where(before > wide["threshold"], before, 0)
    after = before.copy()
    after[:, feature] = edit(before[:, feature])
    return np.asarray(X + (after - before) @ wide["W_dec"])


def close(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.allclose(a, b, rtol=0, atol=2e-5))


# What a feature does


def test_add_adds_the_decoder_row(tmp_path: Path) -> None:
    row = coder()["W_dec"][2]
    found = read_sae(saelens(tmp_path), 2)
    assert (found.op, found.site, found.layers) == ("add", "resid_post", (3,))
    assert found.encoders is None
    assert not found.calibrated
    np.testing.assert_allclose(found.rows()[3], row, rtol=1e-6)
    np.testing.assert_allclose(found.scales, np.linalg.norm(row), rtol=1e-6)
    assert close(steered(found, 1.5), X + 1.5 * row)
    assert not close(steered(found, -1.5), X + 1.5 * row)


EDITS: dict[str, tuple[float | None, Callable[[np.ndarray], np.ndarray]]] = {
    "project": (None, np.zeros_like),
    "clamp": (3.0, lambda f: np.full_like(f, 3.0)),
    "cap": (0.7, lambda f: np.minimum(f, 0.7)),
}


@pytest.mark.parametrize("op", EDITS)
@pytest.mark.parametrize("feature", range(FEATURES))
def test_an_op_that_reads_does_what_the_autoencoder_does(
    tmp_path: Path, op: str, feature: int
) -> None:
    target, edit = EDITS[op]
    found = read_sae(saelens(tmp_path), feature, op=op, target=target)
    np.testing.assert_array_equal(found.scales, [1])
    wanted = rewritten(coder(), feature, edit)
    assert close(steered(found), wanted)
    # the twins: another sign, another feature, a bias that was not folded in
    assert not close(steered(found, -1), wanted)
    assert not close(steered(found), rewritten(coder(), (feature + 1) % FEATURES, edit))
    assert not close(steered(found), rewritten(coder(), feature, edit, subtract=False))


def test_the_decoders_bias_is_taken_off_only_where_the_config_says_so(tmp_path: Path) -> None:
    found = read_sae(saelens(tmp_path, {"apply_b_dec_to_input": False}), 1, op="project")
    assert close(steered(found), rewritten(coder(), 1, np.zeros_like, subtract=False))
    assert not close(steered(found), rewritten(coder(), 1, np.zeros_like))


def test_the_direction_is_the_unit_decoder_row(tmp_path: Path) -> None:
    arrays = coder()
    row = arrays["W_dec"][4].astype(np.float64)
    found = read_sae(saelens(tmp_path), np.int64(4), op="clamp", target=2)  # type: ignore[arg-type]
    norm = np.linalg.norm(row)
    assert found.encoders is not None
    assert found.encoder_biases is not None
    assert found.targets is not None
    np.testing.assert_allclose(found.directions[0], row / norm, rtol=1e-6)
    np.testing.assert_allclose(found.encoders[0], norm * arrays["W_enc"][:, 4], rtol=1e-6)
    np.testing.assert_allclose(found.targets[0], 2 * norm, rtol=1e-6)
    bias = arrays["b_enc"][4] - arrays["b_dec"] @ arrays["W_enc"][:, 4]
    np.testing.assert_allclose(found.encoder_biases[0], norm * bias, rtol=1e-5)


def test_words_and_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mlxsteer")
    path = saelens(tmp_path / "layer 3", {"model_name": "gpt2\n-small"})
    found = read_sae(path, 2, op="project")
    told = "feature 2 of layer 3/sae_weights.safetensors"
    assert (found.name, found.positive, found.negative) == ("sae-2", f"without {told}", told)
    assert found.method == f"SAE {told} for gpt2 -small"
    assert (found.tool, found.model) == ("SAE import", None)
    assert caplog.messages == [f"{path}: feature 2, uncalibrated, project at resid_post of layer 3"]
    found.save(tmp_path / "feature.safetensors")
    assert read_vector(tmp_path / "feature.safetensors") == found


# Formats


@pytest.mark.parametrize(
    ("hook", "place"),
    [
        ("blocks.8.hook_resid_post", (8, "resid_post")),
        ("blocks.8.hook_resid_pre", (7, "resid_post")),
        ("blocks.0.hook_resid_mid", (0, "resid_mid")),
        ("blocks.12.hook_mlp_out", (12, "mlp_out")),
        ("blocks.12.hook_attn_out", (12, "attn_out")),
    ],
)
@pytest.mark.parametrize("version", [2, 5, 6])
def test_a_hook_name_is_a_layer_and_a_site(
    tmp_path: Path, hook: str, place: tuple[int, str], version: int
) -> None:
    named = {"hook_point" if version == 2 else "hook_name": hook}
    config = {"metadata": named} if version == 6 else named
    path = saelens(tmp_path, {"hook_name": ..., **config})
    found = read_sae(path, 0)
    assert (found.layers[0], found.site) == place
    assert read_sae(path, 0, layer=place[0], site=place[1]) == found


def test_gemma_scope(tmp_path: Path) -> None:
    path = gemma_scope(tmp_path)
    found = read_sae(path, 2)
    assert (found.layers, found.site) == ((3,), "resid_post")
    assert found.method.endswith(" for gemma-scope-2b-pt-res")
    np.testing.assert_allclose(found.rows()[3], coder()["W_dec"][2], rtol=1e-6)
    assert load_vector(path, feature=2, hidden_size=WIDTH) == found
    assert read_sae(gemma_scope(tmp_path, "gemma-scope-9b-it-mlp"), 0).site == "mlp_out"


def test_gemma_scope_in_any_folder_needs_its_layer(tmp_path: Path) -> None:
    arrays: Any = coder()
    np.savez(tmp_path / "params.npz", **arrays)
    with pytest.raises(UsageError, match=r"says the layer: give it \(--layer 12\)"):
        read_sae(tmp_path / "params.npz", 0)
    found = load_vector(tmp_path / "params.npz", feature=0, layer=12)
    assert (found.layers, found.site) == ((12,), "resid_post")
    assert read_sae(tmp_path / "params.npz", 0, layer=5, site="mlp_out").site == "mlp_out"


@pytest.mark.parametrize("order", [np.ascontiguousarray, np.asfortranarray])
@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_any_npz_of_numbers_is_read(tmp_path: Path, order: Any, dtype: str, save: Any) -> None:
    rounded = {k: order(v.astype(dtype)) for k, v in coder(threshold=[0] * FEATURES).items()}
    save(tmp_path / "params.npz", step=np.arange(3), **rounded)
    found = read_sae(tmp_path / "params.npz", 3, op="project", layer=0)
    arrays = {key: value.astype(np.float32) for key, value in rounded.items()}
    assert close(steered(found), rewritten(arrays, 3, np.zeros_like, subtract=False))


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F64"])
def test_any_safetensors_of_numbers_is_read(tmp_path: Path, dtype: str) -> None:
    types = {"F16": mx.float16, "BF16": mx.bfloat16}
    path = saelens(tmp_path)
    if dtype == "F64":
        save_file({key: value.astype(np.float64) for key, value in coder().items()}, path)
    else:
        made = {key: mx.array(value).astype(types[dtype]) for key, value in coder().items()}
        mx.save_safetensors(str(path), made)
    exact = read_sae(saelens(tmp_path / "exact"), 3, op="project")
    found = read_sae(path, 3, op="project")
    assert exact.encoders is not None
    assert found.encoders is not None
    np.testing.assert_allclose(found.directions, exact.directions, atol=4e-3)
    np.testing.assert_allclose(found.encoders, exact.encoders, rtol=2e-2)
    assert np.array_equal(found.encoders, exact.encoders) == (dtype == "F64")


def test_gemma_scope_2(tmp_path: Path) -> None:
    found = read_sae(gemma_scope_2(tmp_path / "a"), 2)
    assert (found.layers, found.site) == ((3,), "resid_post")
    np.testing.assert_allclose(found.rows()[3], coder()["W_dec"][2], rtol=1e-6)
    out = "model.layers.5.post_feedforward_layernorm.output"
    path = gemma_scope_2(tmp_path / "b", hf_hook_point_in=out)
    assert (read_sae(path, 2).layers, read_sae(path, 2).site) == ((5,), "mlp_out")
    path = gemma_scope_2(tmp_path / "c", hf_hook_point_out=out)
    assert (read_sae(path, 2).layers, read_sae(path, 2).site) == ((5,), "mlp_out")
    with pytest.raises(MlxsteerError, match="reads at another place than it writes: use op add"):
        read_sae(path, 0, op="project")


@pytest.mark.parametrize(
    ("folder", "place"),
    [
        ("layers.11", (11, "resid_post")),
        ("layers.11.mlp", (11, "mlp_out")),
        ("model.layers.0.mlp", (0, "mlp_out")),
        ("gpt_neox.layers.4.attention", (4, "attn_out")),
    ],
)
def test_eleuther(tmp_path: Path, folder: str, place: tuple[int, str]) -> None:
    path = eleuther(tmp_path / folder)
    found = read_sae(path, 2)
    assert (found.layers[0], found.site) == place
    np.testing.assert_allclose(found.rows()[place[0]], coder()["W_dec"][2], rtol=1e-6)
    with pytest.raises(MlxsteerError, match=r"op project would read it by a relu, and .* is top-k"):
        read_sae(path, 2, op="project")


# JumpReLU


def test_a_cap_at_the_threshold_is_exact(tmp_path: Path) -> None:
    path, arrays = gemma_scope(tmp_path), coder(threshold=np.linspace(0, 2, FEATURES))
    for feature, threshold in enumerate(arrays["threshold"].tolist()):
        for target in (threshold, threshold + 0.5):
            found = read_sae(path, feature, op="cap", target=target)
            edit = (lambda t: lambda f: np.minimum(f, t))(target)
            assert close(steered(found), rewritten(arrays, feature, edit, subtract=False))


def test_a_threshold_that_a_relu_cannot_have_is_refused(tmp_path: Path) -> None:
    path = gemma_scope(tmp_path)
    for op, target in (("project", None), ("clamp", 9.0), ("cap", 1.4)):
        words = f"op {op} would read it by a relu, and feature 3 is JumpReLU, 0 up to 1.5: use op"
        with pytest.raises(MlxsteerError, match=words + " add, or op cap at that or above"):
            read_sae(path, 3, op=op, target=target)
    # the twin: below the threshold of 0 nothing is lost
    arrays = coder(threshold=np.linspace(0, 2, FEATURES))
    found = read_sae(path, 0, op="project")
    assert close(steered(found), rewritten(arrays, 0, np.zeros_like, subtract=False))


# What is refused


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (..., "it has no cfg.json beside it that names its activation: use op add"),
        ({"architecture": "topk"}, "its activation is 'topk'"),
        ({"architecture": "gated"}, "its activation is 'gated'"),
        ({"activation_fn_str": "tanh-relu"}, "its activation is 'tanh-relu'"),
        ({"normalize_activations": "layer_norm"}, r"a stream that is normalized \('layer_norm'\)"),
        ({"normalize_activations": True}, "normalized"),
        ({"hook_name_out": "blocks.3.hook_mlp_out"}, "reads at another place than it writes"),
        ({"finetuning_scaling_factor": True}, "scales its features again"),
    ],
)
def test_an_activation_that_is_no_relu_is_refused(tmp_path: Path, config: Any, words: str) -> None:
    path = saelens(tmp_path, config)
    layer = 3 if config is ... else None
    assert read_sae(path, 1, layer=layer).layers == (3,)
    with pytest.raises(MlxsteerError, match=words) as caught:
        read_sae(path, 1, layer=layer, op="project")
    assert str(caught.value).startswith(f"{path}: op project would read it by a relu, and ")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"feature": 5}, "there is no feature 5: it has 0 to 4"),
        ({"feature": -1}, "there is no feature -1"),
        ({"feature": True}, "feature is True: use a number from 0 to 4"),
        ({"feature": 1.0}, "feature is 1.0: use a number"),
        ({"feature": "1"}, "feature is '1': use a number"),
        ({"op": "x"}, "unknown op 'x': use add, project, clamp, cap"),
        ({"op": "clamp"}, r"op clamp needs a target: give one \(--target 8\)"),
        ({"op": "cap"}, "op cap needs a target"),
        ({"op": "add", "target": 1.0}, "op add takes no target: leave it out"),
        ({"op": "project", "target": 0.0}, "op project takes no target"),
        ({"op": "clamp", "target": float("nan")}, "target is nan"),
        ({"op": "cap", "target": -1.0}, "cap it at a target from 0"),
        ({"layer": 4}, "hook_resid_post' in cfg.json is resid_post of layer 3: leave layer 4 out"),
        ({"site": "mlp_out"}, "is resid_post of layer 3: leave site 'mlp_out' out"),
        ({"site": "resid_pre"}, "unknown site 'resid_pre': use attn_out"),
    ],
)
def test_wrong_words_are_named(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(MlxsteerError, match=words) as caught:
        read_sae(saelens(tmp_path), **{"feature": 1, **options})
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("hook", "words"),
    [
        ("blocks.0.hook_resid_pre", "it acts on the embeddings .*where nothing is steered"),
        ("blocks.3.attn.hook_z", "it acts at 'blocks.3.attn.hook_z', which is none of attn_out"),
        ("hook_embed", "it acts at 'hook_embed'"),
        ("blocks.-1.hook_resid_post", "it acts at 'blocks.-1"),
        (["blocks.3.hook_resid_post"], "it acts at"),
        (3, "it acts at 3"),
    ],
)
def test_a_place_that_is_no_site_is_named(tmp_path: Path, hook: Any, words: str) -> None:
    path = saelens(tmp_path, {"hook_name": hook})
    with pytest.raises(MlxsteerError, match=words):
        read_sae(path, 0)
    with pytest.raises(MlxsteerError, match=words):
        read_sae(path, 0, layer=3, site="resid_post")


def test_attention_heads_and_transcoders_of_gemma_scope_are_refused(tmp_path: Path) -> None:
    for repo in ("gemma-scope-2b-pt-att", "gemma-scope-2b-pt-transcoders"):
        with pytest.raises(MlxsteerError, match=f"{repo} is of none of .*: take -res or -mlp"):
            read_sae(gemma_scope(tmp_path, repo), 0, layer=3)


def test_the_folder_may_not_say_another_layer(tmp_path: Path) -> None:
    words = "gemma-scope-2b-pt-res, folder layer_3 is resid_post of layer 3: leave layer 4 out"
    with pytest.raises(UsageError, match=words):
        read_sae(gemma_scope(tmp_path), 0, layer=4)
    with pytest.raises(UsageError, match=r"folder 'layers\.3\.mlp' is mlp_out of layer 3"):
        read_sae(eleuther(tmp_path / "layers.3.mlp"), 0, layer=2)


def test_another_width_than_the_models_is_named(tmp_path: Path) -> None:
    path = saelens(tmp_path)
    with pytest.raises(MlxsteerError, match="it has width 8, not 16: it is for another model"):
        load_vector(path, feature=0, hidden_size=16)
    model = ModelRef("tiny/random", "0", "llama", 4, 16, "none", "float32")
    with pytest.raises(MlxsteerError, match="'sae-0' has width 8, tiny/random has 16"):
        read_sae(path, 0).check(model)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"W_dec": ...}, "it is no SAE: it has no array W_dec"),
        ({"W_dec": np.ones(8)}, r"W_dec has the shape \[8\], not \[features, D\]"),
        ({"W_dec": np.ones((0, 8))}, r"W_dec has the shape \[0, 8\]"),
        ({"W_enc": np.ones((5, 8))}, r"W_enc has the shape \[5, 8\], .* it is \[8, 5\]"),
        ({"b_enc": np.ones(8)}, r"b_enc has the shape \[8\]"),
        ({"b_dec": np.ones(5)}, r"b_dec has the shape \[5\]"),
        ({"threshold": np.ones(4)}, r"threshold has the shape \[4\]"),
        ({"W_dec": np.zeros((5, 8))}, "feature 1 is dead: its decoder row is zero"),
        ({"W_dec": np.full((5, 8), np.nan)}, "'W_dec' has NaN or infinity at 1"),
        ({"W_enc": np.full((8, 5), np.inf)}, "'W_enc' has NaN or infinity at 1"),
        ({"W_enc": np.zeros((8, 5))}, "encoder of layer 3 has norm 0"),
        ({"b_dec": np.full(8, np.nan)}, "'b_dec' has NaN"),
        ({"W_enc": ...}, "it has no W_enc: use op add"),
        ({"b_enc": ..., "b_dec": ...}, "it has no b_dec and b_enc: use op add"),
    ],
)
def test_wrong_arrays_are_named(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    path = saelens(tmp_path, None, coder(**changes))
    with pytest.raises(MlxsteerError, match=words) as caught:
        read_sae(path, 1, op="project")
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value).splitlines()) == 1


def npz(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name + ".npy", data)
    return buffer.getvalue()


def npy(header: str, data: bytes = b"", version: int = 1) -> bytes:
    text = header.encode()
    return b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(2, "little") + text + data


def objects() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, W_dec=np.array([{"a": 1}], object), allow_pickle=True)
    return buffer.getvalue()


F4 = "{'descr': '<f4', 'fortran_order': False, 'shape': (%s), }\n"
HOSTILE: dict[str, tuple[str, bytes, str]] = {
    "pickle": ("sae.pt", pickle.dumps([1.0] * 9, 4), "it is a pickle, .* is never read"),
    "bin": ("sae.bin", pickle.dumps([1.0] * 9, 2), "it is a pickle"),
    "torch": ("sae.pt", npz(data=b"x"), "zip archive of pickles .*use .safetensors or .npz"),
    "objects": ("params.npz", objects(), "'W_dec' in it holds Python objects, i.e. a pickle"),
    "no npy": (
        "params.npz",
        npz(W_dec=b"pickle!!!!!"),
        r"'W_dec' .* begins with b'pickle', no arr",
    ),
    "empty npy": ("params.npz", npz(W_dec=b""), "begins with b'', no array"),
    "structured": ("params.npz", npz(W_dec=npy("{'descr': [('a', 'O')]}")), "is no plain array"),
    "whole numbers": (
        "params.npz",
        npz(W_dec=npy("{'descr': '<i4', 'fortran_order': False, 'shape': (1, 1), }\n", bytes(4))),
        "it has no array W_dec of numbers",
    ),
    "short": ("params.npz", npz(W_dec=npy(F4 % "2, 4", bytes(31))), "'W_dec' in it is truncated"),
    "long": ("params.npz", npz(W_dec=npy(F4 % "2, 4", bytes(33))), r"\(2, 4\) in"),
    "huge": ("params.npz", npz(W_dec=npy(F4 % ("9" * 60))), "is truncated or damaged"),
    "absurd": ("params.npz", npz(W_dec=npy(F4 % ("9" * 6000))), "is no plain array"),
    "header length": ("params.npz", npz(W_dec=b"\x93NUMPY\x02\0\xff\xff\xff\xff{}"), "is no plain"),
    "GGUF": ("sae.gguf", b"GGUF" + bytes(60), "it is a GGUF file"),
    "no zip": ("params.npz", b"PK\x03\x04" + bytes(60), "cannot be read: .*not a zip"),
    "text": ("sae.safetensors", b"Ahoy, this is no tensor at all.", "it is no vector file"),
    "short file": ("sae.safetensors", b"\0" * 8 + b"{}", "it is truncated: it has 10 bytes"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    file, data, words = HOSTILE[name]
    (tmp_path / file).write_bytes(data)
    for read in (
        lambda: read_sae(tmp_path / file, 0, layer=1),
        lambda: load_vector(tmp_path / file, feature=0, layer=1),
    ):
        with pytest.raises(MlxsteerError, match=words) as caught:
            read()
        assert str(caught.value).startswith(str(tmp_path / file))
        assert len(str(caught.value).splitlines()) == 1


def test_a_pickle_in_an_npz_is_never_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "boom",))

    with_object = np.empty(1, object)
    with_object[0] = Bomb()
    np.savez(tmp_path / "params.npz", W_dec=with_object, allow_pickle=True)
    with pytest.raises(MlxsteerError, match="holds Python objects"):
        read_sae(tmp_path / "params.npz", 0, layer=1)
    assert not (tmp_path / "boom").exists()
    np.load(tmp_path / "params.npz", allow_pickle=True)["W_dec"]  # the twin: it would have gone off
    assert (tmp_path / "boom").exists()


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"dtype": "F32", "shape": [5, 8], "data_offsets": [0, 161]}, r"lies at \[0, 161\]"),
        ({"dtype": "F32", "shape": [5, 8], "data_offsets": [999, 1159]}, "truncated or damaged"),
        ({"dtype": "F32", "shape": [-5, -8], "data_offsets": [0, 160]}, "is damaged: the header"),
        ({"dtype": "F32", "shape": [5, 8], "data_offsets": [0]}, "is damaged: the header"),
        ({"dtype": "F32", "shape": 40, "data_offsets": [0, 160]}, "is damaged: the header"),
        ({"dtype": "I32", "shape": [5, 8], "data_offsets": [0, 160]}, "no array W_dec of numbers"),
        ({"dtype": ["F32"], "shape": [5, 8], "data_offsets": [0, 160]}, "no array W_dec"),
        ([], "no array W_dec"),
    ],
)
def test_a_hostile_header_is_refused(tmp_path: Path, entry: Any, words: str) -> None:
    text = json.dumps({"W_dec": entry}).encode()
    path = tmp_path / "sae.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(160))
    with pytest.raises(MlxsteerError, match=words):
        read_sae(path, 0, layer=1)


def test_a_config_that_is_no_json_is_named(tmp_path: Path) -> None:
    path = saelens(tmp_path)
    for text in (b"[1]", b"{", b"\xff\xfe", b'{"hook_name": 1, "hook_name": 2}'):
        (tmp_path / "cfg.json").write_bytes(text)
        with pytest.raises(MlxsteerError, match=r"cfg.json: it (is|has)") as caught:
            read_sae(path, 0)
        assert len(str(caught.value).splitlines()) == 1


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, bytes]]:
    folder = tmp_path_factory.mktemp("sae")
    files = {"npz": gemma_scope(folder), "safetensors": saelens(folder / "layers.3")}
    return {name: (path, path.read_bytes()) for name, path in files.items()}


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
@given(data=st.data())
def test_damaged_files_are_refused_in_one_line(
    whole: dict[str, tuple[Path, bytes]], kind: str, data: st.DataObject
) -> None:
    """There is no hash in these formats: a changed number passes, anything else has one line."""
    path, good = whole[kind]
    at = data.draw(st.integers(0, len(good) - 1))
    cut = data.draw(st.booleans(), label="cut")
    rest = b"" if cut else data.draw(st.binary(min_size=1, max_size=9)) + good[at + 1 :]
    path.write_bytes(good[:at] + rest)
    try:
        found = read_sae(path, 0, op="project")
    except MlxsteerError:
        with pytest.raises(MlxsteerError) as caught:
            read_sae(path, 0, op="project")
        assert len(str(caught.value).splitlines()) == 1
        return
    assert np.isfinite(found.directions).all()


# Through the one entry point


def test_an_sae_asks_for_a_feature(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"only an SAE is read from \.npz: choose one of its feat"):
        load_vector(gemma_scope(tmp_path))
    for path in (saelens(tmp_path / "a"), eleuther(tmp_path / "b"), gemma_scope_2(tmp_path / "c")):
        with pytest.raises(MlxsteerError, match="it is a sparse autoencoder: choose one of its fe"):
            load_vector(path)


def test_only_the_rows_of_the_feature_are_read(tmp_path: Path) -> None:
    """A file of 64 MB, all of it a hole but for one row, costs a few kilobytes."""
    count, size = 1 << 21, 1 << 26
    entry = {"dtype": "F32", "shape": [count, WIDTH], "data_offsets": [0, size]}
    text = json.dumps({"W_dec": entry}).encode()
    row = np.arange(WIDTH, dtype="<f4")
    with (path := tmp_path / "sae.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.seek(size - row.nbytes, 1)
        file.write(row.tobytes())
    tracemalloc.start()
    found = read_sae(path, count - 1, layer=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_allclose(found.rows()[1], row, rtol=1e-6)
    assert peak < 1 << 20
