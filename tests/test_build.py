"""A built folder holds what `extract` makes, one by one, however often the build was broken off."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.nn as nn
import numpy as np
import pytest
from tiny import ref, tiny, tokenizer

from mlxsteer.build import Built, build
from mlxsteer.capture import capture
from mlxsteer.errors import MlxsteerError, UsageError
from mlxsteer.extract import extract
from mlxsteer.library import Concept, read_concept
from mlxsteer.prefix import shared_prefix
from mlxsteer.prompts import render
from mlxsteer.vector import Vector, read_vector

SIDES = ("positive", "negative")
TOPICS = ["how was your day", "why is the sky blue", "tell me about the sea", "what should i cook"]
SAID = {
    "salty": ("be a pirate", "be helpful"),
    "shy": ("be short please", "be helpful"),
    "sunny": ("your sky is blue", "your day is short"),
}


def write_concept(folder: Path, positive: str, negative: str, place: str = "system") -> Concept:
    """Write a concept with all the files that one may have, and some that are no part of it."""
    folder.mkdir(parents=True)
    (folder / "vector.toml").write_text(
        f'name = "{folder.name}"\npositive = "more"\nnegative = "less"\n'
        'sign = "Positive is more."\nlicense = "CC0-1.0"\n[recipe]\n'
        f'place = "{place}"\npositive = "{positive}"\n'
        f'negative = "{negative}"\nprompts = "prompts.jsonl"\n'
        '[rule]\nkind = "lexicon"\nsign = 1\nwords = "words.txt"\n'
    )
    lines = [f'{{"prompt": "{topic}", "split": "train", "topic": "t"}}\n' for topic in TOPICS]
    (folder / "prompts.jsonl").write_text("".join(lines))
    (folder / "words.txt").write_text("pirate\nsea\n")
    (folder / "README.md").write_text(f"# {folder.name}\n")
    (folder / "other.safetensors").write_bytes(b"of another model")
    (folder / ".hidden.txt").touch()
    return read_concept(folder)


@pytest.fixture
def model() -> nn.Module:
    """A model with a name, its head sharp enough that a nat can be moved."""
    made = tiny()
    made.model.norm.weight = 6 * made.model.norm.weight
    made.source = ref()
    return made


@pytest.fixture
def found(tmp_path: Path) -> list[Concept]:
    return [write_concept(tmp_path / "library" / name, *said) for name, said in SAID.items()]


def make(model: nn.Module, found: list[Concept], folder: Path, **options: Any) -> list[Built]:
    return list(build(model, tokenizer(), found, folder, "tiny", **options))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_folder_is_what_extract_makes_one_by_one(
    model: nn.Module, found: list[Concept], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    made = make(model, found, out)
    assert [(m.concept, m.kept, m.error) for m in made] == [(c, False, "") for c in found]
    monkeypatch.setenv("MLXSTEER_HOME", str(tmp_path / "another"))  # the text is written again
    expected = {}
    for one in found:
        for name in ("README.md", "prompts.jsonl", "vector.toml", "words.txt"):
            expected[f"{one.name}/{name}"] = (one.folder / name).read_bytes()
        path = tmp_path / "one.safetensors"
        extract(model, tokenizer(), one).save(path)
        expected[f"{one.name}/tiny.safetensors"] = path.read_bytes()
        assert (
            read_concept(out / one.name).vector_path("tiny")
            == out / one.name / path.with_stem("tiny").name
        )
    assert contents(out) == expected
    vectors = [m.vector for m in made]
    assert [v and v.calibrated for v in vectors] == [True] * 3
    assert len(set(vectors)) == 3


def test_the_sign_is_that_of_the_recipe(
    model: nn.Module, found: list[Concept], tmp_path: Path
) -> None:
    positive, negative = SAID["salty"]
    write_concept(tmp_path / "turned" / "salty", negative, positive)
    turned = read_concept(tmp_path / "turned" / "salty")
    (plain,) = make(model, found[:1], tmp_path / "out")
    (other,) = make(model, [turned], tmp_path / "out2")
    assert plain.vector is not None
    assert other.vector is not None
    np.testing.assert_allclose(plain.vector.directions, -other.vector.directions, atol=1e-6)
    sides = [[render(tokenizer(), getattr(p, w)) for p in found[0].pairs()] for w in SIDES]
    more, less = (capture(model, s, layers=plain.vector.layers)["resid_post"] for s in sides)
    along = ((more - less).mean(axis=0) * plain.vector.directions).sum(axis=1)
    assert (along > 0).all()


class Killed(BaseException):
    """What no code catches."""


def test_a_killed_build_goes_on_where_it_stopped(
    model: nn.Module, found: list[Concept], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(model, found, tmp_path / "whole")
    out = tmp_path / "out"

    def killed(after: int) -> Callable[..., Vector]:
        def extracting(*arguments: Any, **options: Any) -> Vector:
            nonlocal after
            if after == 0:
                raise Killed
            after -= 1
            return extract(*arguments, **options)

        return extracting

    monkeypatch.setattr("mlxsteer.build.extract", killed(2))
    with pytest.raises(Killed):
        make(model, found, out)
    names = [path.parent.name for path in sorted(out.rglob("*.safetensors"))]
    assert names == ["salty", "shy"]
    left = out / "sunny" / ".0123456789abcdef.safetensors"  # by a kill while a file was written
    left.write_bytes(b"half")
    monkeypatch.setattr("mlxsteer.build.extract", killed(1))  # no more than one is made now
    assert [m.kept for m in make(model, found, out)] == [True, True, False]
    assert contents(out) == contents(tmp_path / "whole")
    monkeypatch.setattr("mlxsteer.build.extract", killed(0))
    assert [m.kept for m in make(model, found, out)] == [True] * 3
    with pytest.raises(Killed):  # the twin: `anew` does make them
        make(model, found, out, anew=True)


def test_nothing_is_seen_of_a_vector_that_is_half_written(
    model: nn.Module, found: list[Concept], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*names: object) -> None:
        if str(names[1]).endswith("shy/tiny.safetensors"):
            raise Killed

        rename(*names)

    rename: Any = os.replace
    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(Killed):
        make(model, found, tmp_path / "out")
    names = [path.parent.name for path in sorted((tmp_path / "out").rglob("*.safetensors"))]
    assert names == ["salty"]


CHANGES: dict[str, Callable[[Vector], Vector]] = {
    "pairs_sha256": lambda v: v.replace(pairs_sha256="0" * 64),
    "model": lambda v: v.replace(model=ref(quantization="q4_1")),
    "positive": lambda v: v.replace(positive="much more"),
    "token": lambda v: v.replace(token="last content token"),
    "method": lambda v: v.replace(method="pca"),
    "layers": lambda v: v.replace(layers=(2,)),
    "template": lambda v: v.replace(template={**v.template, "sha256": ""}),
    "budget": lambda v: v.replace(calibration={**(v.calibration or {}), "budget": 2.0}),
    "text_sha256": lambda v: v.replace(calibration={**(v.calibration or {}), "text_sha256": "0"}),
    "calibration, no safe range": lambda v: v.replace(
        calibration={k: c for k, c in (v.calibration or {}).items() if k != "safe"}
    ),
    "budget, not calibrated": lambda v: v.replace(calibration=None),
}


def test_a_vector_that_is_another_is_made_anew(
    model: nn.Module, found: list[Concept], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    (first,) = make(model, found[:1], out)
    whole = first.path.read_bytes()
    for what, change in CHANGES.items():
        change(read_vector(first.path)).save(first.path)
        if first.path.read_bytes() == whole:
            pytest.fail(f"{what}: nothing was changed")
        caplog.clear()
        with caplog.at_level(logging.WARNING, "mlxsteer"):
            (again,) = make(model, found[:1], out)
        assert (again.kept, first.path.read_bytes()) == (False, whole), what
        assert f"another {what.partition(',')[0]}" in caplog.text
    first.path.write_bytes(whole[:-9])
    assert [m.kept for m in make(model, found[:1], out)] == [False]
    assert first.path.read_bytes() == whole


def test_the_library_itself_may_be_the_folder(
    model: nn.Module, found: list[Concept], tmp_path: Path
) -> None:
    before = contents(tmp_path / "library")
    make(model, found, tmp_path / "library")
    after = contents(tmp_path / "library")
    assert after.keys() - before.keys() == {f"{name}/tiny.safetensors" for name in SAID}
    assert {name: after[name] for name in before} == before


def test_one_that_fails_does_not_stop_the_others(
    model: nn.Module, found: list[Concept], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No budget reached, a folder that is a file, and two that go well."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "shy").touch()
    dull = write_concept(tmp_path / "library" / "dull", "zzz", "yyy")  # unknown words both
    last = write_concept(tmp_path / "library" / "tired", "tell me", "be blue")
    made = make(model, [*found, dull, last], out)
    names = [*SAID, "dull", "tired"]
    assert [m.concept.name for m in made] == names
    assert [m.vector is None for m in made] == [False, True, False, True, False]
    assert "shy cannot be written" in made[1].error
    assert "the same to the model" in made[3].error
    assert [m.path.is_file() for m in made] == [m.vector is not None for m in made]

    def unreachable(*arguments: Any, name: str = "", **options: Any) -> Vector:
        raise MlxsteerError("no strength of it moves the model by 0.5 nats")

    monkeypatch.setattr("mlxsteer.build.extract", unreachable)
    before = made[0].path.read_bytes()
    (failed,) = make(model, found[:1], out, anew=True)
    assert failed.vector is None
    assert failed.error.startswith("no strength of it moves the model by 0.5 nats; ")
    assert failed.error.endswith("tiny.safetensors is left as it was")
    assert made[0].path.read_bytes() == before


def test_a_budget_that_is_out_of_reach_is_told(found: list[Concept], tmp_path: Path) -> None:
    flat = tiny()
    flat.model.norm.weight = flat.model.norm.weight * 0  # logits are constant now
    for one in make(flat, found, tmp_path / "out"):
        assert one.vector is None
        assert f"no strength of '{one.concept.name}' moves the model by 0.5 nats" in one.error
        assert not one.path.exists()


def test_a_template_without_system_prompts_fails_what_needs_one(
    model: nn.Module, found: list[Concept], tmp_path: Path
) -> None:
    words = tokenizer()
    refusal = "{{ raise_exception('no system') if messages[0]['role'] == 'system' }}"
    words._tokenizer.chat_template = refusal + words.chat_template
    suffix = write_concept(tmp_path / "library" / "mild", "be short", "be long", place="suffix")
    made = list(build(model, words, [*found, suffix], tmp_path / "out", "tiny"))
    assert [m.vector is None for m in made] == [True, True, True, False]
    for one in made[:3]:
        assert "refuses system messages" in one.error
        assert "suffix" in one.error


def test_two_of_one_name_are_refused(
    model: nn.Module, found: list[Concept], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="two concepts are called 'shy'"):
        make(model, [*found, found[1]], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_instructions_are_read_once_and_neutral_text_is_written_once(
    model: nn.Module, found: list[Concept], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted in what goes through the model while the sides are read."""
    passes: list[np.ndarray] = []
    real = type(model).__call__

    def counting(self: nn.Module, tokens: Any, *rest: Any, **options: Any) -> Any:
        passes.append(np.array(tokens))
        return real(self, tokens, *rest, **options)

    monkeypatch.setattr(type(model), "__call__", counting)
    sides: list[list[list[int]]] = [
        [render(tokenizer(), getattr(p, which)) for p in one.pairs()]
        for one in found
        for which in SIDES
    ]
    stages: list[str] = []
    read: list[np.ndarray] = []

    def progress(stage: str, done: int, total: int) -> None:
        if stages[-1:] != [stage]:
            stages.append(stage)
        if stage.startswith("reading") and done == total:
            read.extend(passes)
        if stage == "concepts" or done == total:
            passes.clear()

    make(model, found, tmp_path / "out", progress=progress)
    assert stages.count("writing neutral answers") == 1
    each = ["reading positive prompts", "reading negative prompts", "calibrating", "concepts"]
    assert [stage for stage in stages if stage in each] == ["concepts", *each * len(found)]
    prefixes = [shared_prefix(side) for side in sides]
    assert min(prefixes) >= 5
    rest = [[tokens[n:] for tokens in side] for side, n in zip(sides, prefixes, strict=True)]
    expected = [tokens for n, r in zip(prefixes, rest, strict=True) for tokens in (n, padded(r))]
    assert [tokens.size for tokens in read] == expected
    assert sum(expected) < sum(len(tokens) for side in sides for tokens in side)  # one by one


def padded(rows: list[list[int]]) -> int:
    """The tokens of one batch."""
    return len(rows) * max(map(len, rows))
