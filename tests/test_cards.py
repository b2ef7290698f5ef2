"""The README's table, every card and docs/library.md say what the vectors and their evaluations
say; `make docs` writes them anew.
"""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pages
import pytest
from pages import MODEL, ROOT, Known, current, current_page, evaluations, known

from mlxsteer.evaluate import FULL
from mlxsteer.library import Concept, concept, concepts, known_model, read_concept
from mlxsteer.stats import corrected, paired_bootstrap
from mlxsteer.vector import read_vector

DOCS = ROOT / "docs"
LIBRARY = known(concepts())
NOTHING: dict[str, Any] = {"prompts": [], "strengths": [], "tokens": 0, "concepts": {}}


def test_the_readme_is_current(request: pytest.FixtureRequest) -> None:
    text = pages.readme(LIBRARY, pages.GALLERY.is_file())
    current(ROOT / "README.md", "concepts", text, request.config.getoption("--write-docs"))


@pytest.mark.parametrize("one", LIBRARY, ids=lambda one: one.concept.name)
def test_a_card_says_what_there_is(one: Known, request: pytest.FixtureRequest) -> None:
    path, text = one.concept.folder / "README.md", pages.card(one, pages.gallery())
    current(path, MODEL, text, request.config.getoption("--write-docs"))


def test_the_page_on_the_library_is_current(request: pytest.FixtureRequest) -> None:
    write, plot = request.config.getoption("--write-docs"), DOCS / pages.PLOT
    measured = any(one.claim for one in LIBRARY)
    if write and measured:
        plot.parent.mkdir(exist_ok=True)
        pages.plot_library(LIBRARY, plot)
    current_page(DOCS / "library.md", pages.library_page(LIBRARY), write)
    assert plot.is_file() == measured, "run make docs"


@pytest.mark.parametrize("one", LIBRARY, ids=lambda one: one.concept.name)
def test_what_is_shipped_was_measured_whole_and_of_the_vector_beside_it(one: Known) -> None:
    for record in evaluations(one.concept):
        assert record["split"] == "test"
        sizes = {key: record["settings"][key] for key in vars(FULL)}
        assert sizes == vars(FULL), "measured with --quick"
        if one.vector is not None:
            assert record["vector_sha256"] == one.vector.content_sha256, (
                f"run mlxsteer eval {one.concept.name}: the vector is another by now"
            )
        assert one.record is record or one.record == record


def stale(library: list[Known]) -> list[str]:
    """Which evaluations were made beside other vectors than those that were judged."""
    judged = {one.concept.name: one.record["vector_sha256"] for one in library if one.record}
    found = []
    for one in library:
        if one.record is not None:
            beside = {name: sha for name, sha in one.record["others"] if name in judged}
            if beside != {n: sha for n, sha in judged.items() if n != one.concept.name}:
                found.append(one.concept.name)
    return found


def test_every_concept_was_judged_beside_the_others_as_they_are() -> None:
    assert not stale(LIBRARY), "delete these evaluations and run make evidence"


# The same on a library of two concepts with evaluations of our own


def scored(name: str, sha256: str, effect: float, **changes: Any) -> dict[str, Any]:
    """What `mlxsteer eval` writes, as far as pages read it; the null has half of the effect."""
    noise = [0.01 * (i % 5) for i in range(24)]
    model = known_model(MODEL)
    assert model is not None

    def condition(words: str, strength: float, asked: bool, by: float) -> dict[str, Any]:
        scores = [by + n for n in noise]
        effect = vars(
            paired_bootstrap([by + n - m for n, m in zip(noise, noise[::-1], strict=True)])
        )
        return {
            "name": words,
            "strength": strength,
            "asked": asked,
            "scores": scores,
            "effect": effect if strength or asked else None,
            "detected": 0.25 + strength / 2,
            "counts": [strength, 2 * strength],
            "coherent": True,
            "kl": None if asked else strength,
            "margin": vars(paired_bootstrap([-0.5, -0.25])) if strength == 1 else None,
            "prompt_tokens": 40.0 if asked else 20.0,
            "answers": ["so"],
        }

    record = {
        "vector": name,
        "vector_sha256": sha256,
        "model": model.hub[0].repo,
        "split": "test",
        "prompts": [f"prompt {i}" for i in range(24)],
        "rule": "length (less is more)",
        "conditions": [
            condition("baseline", 0.0, False, 0.0),
            condition("asked in words", 0.0, True, 2 * effect),
            condition("steered 1", 1.0, False, effect),
        ],
        "nulls": [
            {
                "kind": "other",
                "name": "rival",
                "kl": 1.0,
                "scores": [effect / 2] * 24,
                "effect": vars(paired_bootstrap([effect / 2] * 24)),
            }
        ],
        "others": [],
        "against_prompt": vars(paired_bootstrap([-effect + n for n in noise])),
        "tokens_saved": 20.0,
        "settings": vars(FULL),
        "passed": effect > 0,
        "verdict": [f"{name} PASSES.", "It moves the completions."],
    }
    return json.loads(json.dumps({**record, **changes}))  # type: ignore[no-any-return]


@pytest.fixture
def small(tmp_path: Path) -> list[Concept]:
    """Copies of two shipped concepts with vectors, of which the second fails."""
    found = []
    for name, effect in (("terse", 0.5), ("formal", -0.5)):
        folder = Path(shutil.copytree(concept(name).folder, tmp_path / name))
        vector = read_vector(folder / f"{MODEL}.safetensors")
        record = scored(name, vector.content_sha256, effect)
        (folder / "evaluation.json").write_text(json.dumps(record))
        (folder / "effect.png").write_bytes(b"")
        found.append(read_concept(folder))
    return found


def drawn(library: list[Known]) -> dict[str, Any]:
    """What bench/gallery.py writes."""
    answers = [["long | and *long*", "plain", "short"], ["long", "", "short"]]
    counted = [[4.0, 2.0, 1.0], [4.0, 0.0, 1.0]]
    there = {
        one.concept.name: {
            "vector_sha256": one.vector.content_sha256,
            "answers": answers,
            "counted": counted if one.concept.name == "terse" else None,
        }
        for one in library
        if one.vector is not None
    }
    prompts = ["Day?", "Night?"]
    return {"prompts": prompts, "strengths": [-1, 0, 1], "tokens": 8, "concepts": there}


def test_a_vector_that_was_made_anew_makes_the_evaluations_beside_it_stale(
    small: list[Concept],
) -> None:
    (terse, formal), paths = known(small), [one.folder / "evaluation.json" for one in small]
    assert terse.record is not None
    assert formal.record is not None
    pairs = [["terse", terse.record["vector_sha256"]], ["formal", formal.record["vector_sha256"]]]
    for path, other in zip(paths, reversed(pairs), strict=True):
        path.write_text(json.dumps({**json.loads(path.read_text()), "others": [other, ["x", "y"]]}))
    assert stale(known(small)) == []
    record = json.loads(paths[0].read_text())
    paths[0].write_text(json.dumps({**record, "others": [["formal", "another"]]}))
    assert stale(known(small)) == ["terse"]
    paths[0].write_text(json.dumps({**record, "others": []}))
    assert stale(known(small)) == ["terse"]


def test_figures_are_those_of_the_evaluations(small: list[Concept]) -> None:
    library = known(small)
    terse, formal = library
    wanted = corrected(
        {
            one.concept.name: [
                a - b
                for a, b in zip(
                    one.record["conditions"][2]["scores"],  # type: ignore[index]
                    one.record["nulls"][0]["scores"],  # type: ignore[index]
                    strict=True,
                )
            ]
            for one in library
        }
    )
    assert [one.verdict for one in library] == ["passes", "FAILS"]
    for one in library:
        difference, _ = wanted[one.concept.name]
        figure = f"{difference.mean:+.2f} [{difference.low:+.2f}, {difference.high:+.2f}]"
        card = pages.card(one, NOTHING)
        page, readme = pages.library_page(library), pages.readme(library, True)
        assert all(figure in text for text in (card, page, readme))
        assert "| steered 1 | " in card
        assert "![effect" in card
    assert "passes its evidence" in pages.card(terse, NOTHING)
    assert "FAILS its evidence" in pages.card(formal, NOTHING)
    assert "ships as a recipe" in pages.card(formal, NOTHING)
    assert "**1 of 2 concepts pass**" in pages.library_page(library)
    assert "**1 of them pass**" in pages.readme(library, True)
    assert "Asking in words surely does more than strength 1 for 1 of 2" in pages.library_page(
        library
    )
    assert "length (less is more): 0, 0, 1.5" in pages.library_page(library)
    assert "25%, 25%, 75%" in pages.library_page(library)
    assert "docs/gallery.md" not in pages.readme(library, False)


def test_where_something_is_missing_it_is_said(small: list[Concept]) -> None:
    terse, formal = small
    (terse.folder / f"{MODEL}.safetensors").unlink()
    (formal.folder / "evaluation.json").unlink()
    library = known(small)
    assert [one.verdict for one in library] == ["recipe: passes", "not measured"]
    assert "ships as a recipe" in pages.card(library[0], NOTHING)
    assert "was not measured" in pages.card(library[1], NOTHING)
    assert "Not measured: `formal`" in pages.library_page(library)
    (terse.folder / "evaluation.json").unlink()
    library = known(small)
    assert library[0].verdict == "recipe"
    assert "No concept has been measured yet" in pages.library_page(library)
    assert "not measured yet" in pages.readme(library, False)
    record = scored("terse", "0" * 64, -0.5)
    (terse.folder / "evaluation.json").write_text(json.dumps(record))
    (failed, _) = known(small)
    assert failed.verdict == "recipe: FAILS"
    assert "What the recipe gives on `smollm2-135m` fails" in pages.card(failed, NOTHING)


def test_an_evaluation_of_another_vector_counts_for_nothing(small: list[Concept]) -> None:
    path = small[0].folder / f"{MODEL}.safetensors"
    vector = read_vector(path)
    vector.replace(calibration={**(vector.calibration or {}), "kl": 1.5}).save(path)
    terse, formal = known(small)
    assert terse.record is None
    assert terse.verdict == "not measured"
    with pytest.raises(AssertionError, match="the vector is another by now"):
        test_what_is_shipped_was_measured_whole_and_of_the_vector_beside_it(terse)
    test_what_is_shipped_was_measured_whole_and_of_the_vector_beside_it(formal)


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"split": "dev"}, "dev"),
        ({"settings": {**vars(FULL), "prompts": 8}}, "--quick"),
    ],
)
def test_an_evaluation_that_is_no_evidence_is_noticed(
    small: list[Concept], change: dict[str, Any], wrong: str
) -> None:
    path = small[0].folder / "evaluation.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(AssertionError, match=wrong):
        test_what_is_shipped_was_measured_whole_and_of_the_vector_beside_it(known(small)[0])


def test_what_a_vector_makes_the_model_write_is_on_its_card_and_of_no_other(
    small: list[Concept],
) -> None:
    library = known(small)
    shown = drawn(library)
    card = pages.card(library[0], shown)
    assert "| strength | Day? | Night? |" in card
    assert "| -1 | long &#124; and &#42;long&#42; (4) | long (4) |" in card
    assert "| 0 | plain (2) | (nothing) (0) |" in card
    assert "| +1 | short | short |" in pages.card(library[1], shown)
    shown["concepts"]["terse"]["vector_sha256"] = "0" * 64
    assert "### What it does" not in pages.card(library[0], shown)


def test_the_safe_range_is_shown(small: list[Concept]) -> None:
    (one, _) = known(small)
    assert one.vector is not None
    without = {k: v for k, v in (one.vector.calibration or {}).items() if k != "safe"}
    unknown = replace(one, vector=one.vector.replace(calibration=without))
    assert "before its text breaks was not measured" in pages.card(unknown, NOTHING)
    safe = {**without, "safe": {"low": -1.5, "high": 2.0}}
    layers = one.vector.layers
    one = replace(one, vector=one.vector.replace(calibration=safe))
    assert "strengths from -1.5 to 2; tried were 0.5" in pages.card(one, NOTHING)
    assert f"| {layers[0]} to {layers[-1]} | -1.5 to 2 |" in pages.readme([one], False)


def test_the_plot_is_drawn(small: list[Concept], tmp_path: Path) -> None:
    pages.plot_library(known(small), tmp_path / "effect.png")
    assert (tmp_path / "effect.png").read_bytes().startswith(b"\x89PNG")


def test_a_page_that_says_something_else_is_noticed(small: list[Concept]) -> None:
    def card() -> str:
        return pages.card(known(small)[0], NOTHING)

    path = small[0].folder / "README.md"
    current(path, MODEL, card(), write=True)
    current(path, MODEL, card(), write=False)
    record = small[0].folder / "evaluation.json"
    read = json.loads(record.read_text())
    read["conditions"][2]["scores"][0] += 1
    record.write_text(json.dumps(read))
    with pytest.raises(AssertionError, match="make docs"):
        current(path, MODEL, card(), write=False)
    path.write_text("# terse\n")
    with pytest.raises(AssertionError, match="has no block"):
        current(path, MODEL, card(), write=True)
    page = small[0].folder / "page.md"
    current_page(page, "so\n", write=True)
    with pytest.raises(AssertionError, match="make docs"):
        current_page(page, "not so\n", write=False)
    with pytest.raises(AssertionError, match="make docs"):
        current_page(page, None, write=False)


@pytest.mark.parametrize("one", LIBRARY, ids=lambda one: one.concept.name)
def test_the_links_and_commands_of_a_card_are_good(one: Known) -> None:
    text = (one.concept.folder / "README.md").read_text()
    links = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    assert [link for link in links if not (one.concept.folder / link).exists()] == []
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    compile(code, "card", "exec")
    for path in re.findall(r"vectors/[\w/.-]+\.safetensors", text):
        assert (ROOT / path).is_file()
