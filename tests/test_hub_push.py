"""What goes to the Hub and what may not: licence, provenance, no path of anybody's machine."""

import os
from pathlib import Path
from typing import Any

import pytest
from hub_place import made, salty
from tiny import ref

from mlxsteer.bundle import collect, of_concept, of_vector
from mlxsteer.errors import MlxsteerError, UsageError
from mlxsteer.library import known_models
from mlxsteer.model_ref import base_name


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"license": ""}, "no licence: say which with --license"),
        ({"model": None}, r"does not say where it is from \(the model\)"),
        ({"method": "", "pairs_sha256": ""}, r"\(the method, the pairs\)"),
        ({"model": ref(repo="my-model")}, "no Hub id: name its base model with --base-model"),
        ({"model": ref(repo="")}, "no Hub id"),
        ({"name": "Not a name"}, "no concept's name"),
    ],
)
def test_nothing_goes_without_licence_and_provenance(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(MlxsteerError, match=why):
        of_vector(made(**fields))
    assert of_vector(made()).part.license == "CC0-1.0"


def test_a_known_model_is_named_as_people_load_it_and_its_original_too() -> None:
    packed, original = "mlx-community/Qwen3-0.6B-4bit", "Qwen/Qwen3-0.6B"
    part = of_vector(made(model=ref(repo=packed))).part
    (one,) = part.made
    assert (one.base_model, one.model_name, part.base_models) == (packed, "qwen3-0.6b", (original,))
    part = of_vector(made(model=ref(repo="a/Qwen3-0.6B")), base_models=["b/c"]).part
    assert (part.made[0].model_name, part.base_models) == ("qwen3-0.6b", ("b/c", original))
    part = of_vector(made(model=ref(repo="a/other"))).part
    assert (part.made[0].model_name, part.base_models) == ("a/other", ())
    for model in known_models():
        assert base_name(model.hub[0].repo).endswith(base_name(model.original))


def test_words_of_the_command_complete_a_vector() -> None:
    whole = of_vector(made(license="", model=ref(repo="mine")), "MIT", ["a/base"])
    assert (whole.part.license, whole.part.made[0].base_model) == ("MIT", "a/base")
    with pytest.raises(UsageError, match=r"has the licence CC0-1.0"):
        of_vector(made(), "MIT")


def test_a_folder_that_does_not_belong_together(tmp_path: Path) -> None:
    concept = salty(tmp_path / "a", pairs_sha256="1" * 64)
    with pytest.raises(MlxsteerError, match=r"a/tiny.safetensors was made from other pairs"):
        of_concept(concept)
    with pytest.raises(MlxsteerError, match=r"has the licence 'MIT', its concept 'CC0-1.0'"):
        of_concept(salty(tmp_path / "b", license="MIT"))
    concept = salty(tmp_path / "c")
    (concept.folder / "x.pt").write_bytes(b"")
    with pytest.raises(MlxsteerError, match=r"holds 'x.pt', no part of a concept: move it away"):
        of_concept(concept)
    (concept.folder / "x.pt").unlink()
    (concept.folder / ".DS_Store").write_bytes(b"")
    assert ".DS_Store" not in of_concept(concept).files
    (concept.folder / "tiny.safetensors").unlink()
    with pytest.raises(MlxsteerError, match="no vector to push"):
        of_concept(concept)


PATHS = ["/Users/zoe/x", "see\n/Users/zoe/x", "file:///home/zoe/x", "/home/zoe/pairs.jsonl"]
PATHS += ["C:\\Users\\zoe", "C:/Users/zoe", "/private/tmp/x", "/tmp/x", "/root/x", "HOME/x"]


@pytest.mark.parametrize("path", PATHS)
def test_no_local_path_leaks(tmp_path: Path, path: str) -> None:
    concept = salty(tmp_path / "salty")
    assert collect([of_concept(concept)], "a/b")
    path = path.replace("HOME", os.environ["HOME"])
    (concept.folder / "words.txt").write_text(f"brine\n{path}\n")
    with pytest.raises(MlxsteerError, match=r"words.txt holds a local path.*take it out"):
        collect([of_concept(concept)], "a/b")
    leaking = made(evidence={"from": path})
    with pytest.raises(MlxsteerError, match="holds a local path"):
        collect([of_vector(leaking)], "a/b")


def test_an_address_is_no_local_path(tmp_path: Path) -> None:
    concept = salty(tmp_path / "salty")
    (concept.folder / "words.txt").write_text("https://x.org/home/page\nhome/x and /homely/x\n")
    assert collect([of_concept(concept)], "a/b")


def test_a_vector_that_llama_cpp_cannot_hold_goes_without_gguf(tmp_path: Path) -> None:
    assert "random.gguf" in of_vector(made()).files
    assert "random.gguf" not in of_vector(made(op="project")).files
