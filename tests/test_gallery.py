"""The gallery shows what the committed vectors write, all of them and no others; `make docs` makes
its page of `bench/results/gallery.json`.
"""

import dataclasses
import importlib.util
import json
import sys
from types import ModuleType
from typing import Any

import pages
import pytest
from pages import GALLERY, ROOT, Known, current_page, known
from test_cards import drawn
from tiny import ref, tiny, tokenizer, vector

from mlxsteer.library import Concept, concepts
from mlxsteer.rules import Rule

LIBRARY = known(concepts())


def script(name: str) -> ModuleType:
    """Return a script of bench/ as a module."""
    path = ROOT / "bench" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"bench_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


def stale(library: list[Known], shown: dict[str, Any]) -> list[str]:
    """Return the names of concepts whose vectors are not those that wrote the gallery."""
    hashes = {
        one.concept.name: one.vector.content_sha256 for one in library if one.vector is not None
    }
    written = {name: entry["vector_sha256"] for name, entry in shown["concepts"].items()}
    names = hashes.keys() | written.keys()
    return sorted(name for name in names if hashes.get(name) != written.get(name))


def test_the_gallery_is_of_the_committed_vectors() -> None:
    shown, gallery = pages.gallery(), script("gallery")
    again = "run python bench/gallery.py --json bench/results/gallery.json"
    assert stale(LIBRARY, shown) == [], again
    assert tuple(shown["prompts"]) == gallery.PROMPTS, again
    assert tuple(shown["strengths"]) == gallery.STRENGTHS, again
    assert shown["tokens"] == gallery.TOKENS, again
    for name, entry in shown["concepts"].items():
        assert [len(some) for some in entry["answers"]] == [3] * len(gallery.PROMPTS), name
        assert all(some[0] != some[2] for some in entry["answers"]), f"{name} does nothing"


def test_the_page_is_current(request: pytest.FixtureRequest) -> None:
    text = None
    if GALLERY.is_file():
        text = pages.gallery_page(LIBRARY, json.loads(GALLERY.read_text()))
    write = request.config.getoption("--write-docs")
    current_page(ROOT / "docs" / "gallery.md", text, write)


def test_a_gallery_of_other_vectors_is_noticed() -> None:
    shown = drawn(LIBRARY)
    assert stale(LIBRARY, shown) == []
    shown["concepts"]["terse"]["vector_sha256"] = "0" * 64
    del shown["concepts"]["sea"]
    shown["concepts"]["nothing"] = shown["concepts"]["formal"]
    assert stale(LIBRARY, shown) == ["nothing", "sea", "terse"]


def test_the_page_shows_every_answer_and_what_there_is_to_say() -> None:
    shown = drawn(LIBRARY)
    machine = {"chip": "abacus", "cpu_cores": 2, "versions": {"mlx": "1"}, "commit": "abc"}
    page = pages.gallery_page(LIBRARY, {"machine": machine, "figures": shown})
    for one in LIBRARY:
        assert (f"## [{one.concept.name}]" in page) == (one.vector is not None)
    assert "abacus" in page
    assert page.count("| -1 | long &#124; and &#42;long&#42;") == len(shown["concepts"])
    assert page.count("| +1 | short") == len(shown["concepts"])
    left = [one.concept.name for one in LIBRARY if one.vector is None]
    assert not left or f"recipes only: {', '.join(left)}." in page


def test_the_prompts_stand_in_no_recipe() -> None:
    gallery = script("gallery")
    taken = {prompt.text for found in concepts() for prompt in found.prompts}
    assert taken
    assert taken.isdisjoint(gallery.PROMPTS)


def test_strengths_are_those_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    gallery, model = script("gallery"), tiny()
    concept = dataclasses.replace(concepts()[0], rule=Rule("length", 1))
    monkeypatch.setattr(gallery, "PROMPTS", ("tell me about the sea", "what now"))

    def written(scale: float, found: Concept = concept) -> Any:
        v = vector(scale=scale).replace(model=ref())
        return gallery.shown(model, tokenizer(), found, v)

    strong, turned, none = written(20.0), written(-20.0), written(0.0)
    for one, other, plain in zip(
        strong["answers"], turned["answers"], none["answers"], strict=True
    ):
        assert one[1] == other[1] == plain[0] == plain[1] == plain[2]
        assert one == other[::-1]
        assert len(set(one)) == 3
    assert strong["counted"] == [[len(text.split()) for text in some] for some in strong["answers"]]
    assert written(1.0, dataclasses.replace(concept, rule=None))["counted"] is None
