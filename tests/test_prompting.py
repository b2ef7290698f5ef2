"""The study of steering against asking in words: its parts where the truth is known, its data, and
its page, which says what the committed record says; `make docs` writes it anew.
"""

import dataclasses
import functools
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import prompting
import prompting_page
import pytest
import steer_vs_prompt
import style_guide
from prompting import (
    ARMS,
    Turn,
    conversation,
    evaluated,
    first_token,
    measure,
    neutral_turns,
    on_dev,
)
from prompting_page import page, readme
from prompting_plots import PLOTS
from test_calibrate import neutral, tiny
from test_evaluate import NEGATIVE, POSITIVE, calibrated, model, small_concept, towards
from test_scoring import log_prob
from tiny import ref, tokenizer, vector

from mlxsteer.answers import Written
from mlxsteer.bench.machine import machine
from mlxsteer.completions import Completion
from mlxsteer.errors import MlxsteerError
from mlxsteer.evidence import SCHEMA
from mlxsteer.forced import Forced
from mlxsteer.library import Concept, concept, concepts, neutral_prompts
from mlxsteer.prompts import Pair, Recipe
from mlxsteer.scoring import LogOdds
from mlxsteer.state import OFF
from mlxsteer.steering import Steering
from mlxsteer.vector import Vector, read_vector

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
RECORD = ROOT / "bench" / "results" / "steer_vs_prompt.json"
BLOCK = re.compile(r"(?<=<!-- prompting -->\n).*?(?=<!-- end of prompting -->)", re.DOTALL)
TURNS = (Turn("what now", "the sea"), Turn("why then", "answer please"), Turn("be short", "now"))
COUNTS = (0, 1, 2)


@functools.cache
def judged() -> Concept:
    """A concept whose completions are of the split dev."""
    found = small_concept()
    prompts = [dataclasses.replace(p, split="dev") for p in found.prompts if p.split == "test"]
    completions = [dataclasses.replace(one, split="dev") for one in found.completions]
    train = [p for p in found.prompts if p.split == "train"]
    return dataclasses.replace(
        found, prompts=(*train, *prompts), completions=tuple(completions[:4])
    )


@functools.cache
def measured(sign: int) -> dict[str, dict[str, list[float]]]:
    words = (POSITIVE, NEGATIVE) if sign > 0 else (NEGATIVE, POSITIVE)
    return measure(model(), tokenizer(), judged(), calibrated(towards(*words)), TURNS, COUNTS)


# what is measured


def test_a_conversation_opens_with_the_words_and_ends_with_the_prompt() -> None:
    recipe = judged().recipe
    assert recipe is not None
    said = conversation(recipe, TURNS[:2], "how was your day")
    roles = [message["role"] for message in said]
    assert roles == ["system", *["user", "assistant"] * 2, "user"]
    assert said[0]["content"] == recipe.positive
    assert said[-1]["content"] == "how was your day"
    assert conversation(None, TURNS[:2], "how was your day") == said[1:]
    again = conversation(recipe, TURNS[:2], "how was your day", again=True)
    assert again[:-1] == said[:-1]
    assert again[-1]["content"] == f"how was your day {recipe.positive}"
    behind = dataclasses.replace(recipe, place="suffix")  # says it in the first message
    said = conversation(behind, TURNS[:1], "how was your day")
    assert said[0] == {"role": "user", "content": f"what now {recipe.positive}"}
    assert said[-1]["content"] == "how was your day"


def test_a_planted_direction_has_its_effect_behind_any_talk_and_its_opposite_the_opposite() -> None:
    for count in COUNTS:
        up, down = (measured(sign)[str(count)] for sign in (1, -1))
        assert up["plain"] == down["plain"]
        assert min(prompting_page.less(up, "steered")) > 0
        assert max(prompting_page.less(down, "steered")) < 0
    assert sorted(measured(1)) == ["0", "1", "2"]


def test_a_concept_without_evaluation_is_judged_on_dev() -> None:
    v = calibrated(towards(POSITIVE, NEGATIVE))
    found = on_dev(model(), tokenizer(), judged(), v)
    assert found["split"] == "dev"
    for arm in ("plain", "asked", "steered"):
        assert found["scores"][arm] == pytest.approx(measured(1)["0"][arm], abs=2e-4)
    assert min(prompting_page.less(found["scores"], "both", "asked")) > 0
    opposite = on_dev(model(), tokenizer(), judged(), -1 * v)
    assert max(prompting_page.less(opposite["scores"], "both", "asked")) < 0


def test_of_many_prompts_some_are_read() -> None:
    v = calibrated(towards(POSITIVE, NEGATIVE))
    found = measure(model(), tokenizer(), judged(), v, TURNS, (0,), prompts=2)
    whole = measured(1)["0"]
    for arm, scores in found["0"].items():
        assert scores == pytest.approx([whole[arm][0], whole[arm][-1]], abs=2e-4)


def test_without_talk_the_scores_are_those_of_eval() -> None:
    found, completions = measured(1)["0"], judged().completions
    steering = Steering((calibrated(towards(POSITIVE, NEGATIVE)), 1.0))
    plain = LogOdds(model(), tokenizer(), completions)
    asked = LogOdds(model(), tokenizer(), completions, recipe=judged().recipe)
    for arm, odds in (
        ("plain", plain(OFF)),
        ("steered", plain(steering)),
        ("asked", asked(OFF)),
    ):
        assert found[arm] == pytest.approx(odds, abs=2e-4), arm
    assert np.abs(np.subtract(found["asked"], found["plain"])).max() > 0.01


def test_behind_talk_they_are_those_of_the_whole_conversation() -> None:
    steering = Steering((calibrated(towards(POSITIVE, NEGATIVE)), 1.0))
    some = prompting.some_turns(judged().name, TURNS, 2)
    found, recipe = measured(1)["2"], judged().recipe
    assert sorted(found) == ["asked", "asked again", "plain", "steered"]
    one = judged().completions[0]
    for arm, said, again in (("plain", None, False), ("asked", recipe, False)):
        for name, how in ((arm, OFF), ("steered", steering)):
            if (arm, name) == ("asked", "steered"):
                continue
            side = conversation(said, some, one.prompt, again=again)
            both = [log_prob(model(), side, a, how) for a in (one.positive, one.negative)]
            assert found[name][0] == pytest.approx(both[0] - both[1], abs=1e-3)
    assert found["plain"] != pytest.approx(measured(1)["0"]["plain"], abs=1e-3)
    assert found["asked again"] != pytest.approx(found["asked"], abs=1e-3)


def test_concepts_meet_other_talk() -> None:
    turns = neutral_turns()
    starts = {prompting.some_turns(found.name, turns, 2)[0] for found in concepts()}
    assert len(starts) > 3
    assert tuple(prompting.some_turns("a", turns, len(turns))) != turns
    assert set(prompting.some_turns("a", turns, len(turns))) == set(turns)


def test_times_are_of_both_prompts() -> None:
    found = first_token(
        model(), tokenizer(), "be a pirate " * 20 + "what now", "what now", OFF, 0.1
    )
    assert found["asked_tokens"] - found["steered_tokens"] == 60
    assert found["low"] <= found["ratio"] <= found["high"]


def test_the_test_split_is_read_from_the_evaluation(tmp_path: Path) -> None:
    judged_by, v = dataclasses.replace(judged(), folder=tmp_path), vector()
    loaded = tiny()
    loaded.source = ref()
    assert evaluated(judged_by, v, loaded) is None
    conditions = [
        {"strength": s, "asked": asked, "scores": [s, 2.0 * asked], "detected": 0.5}
        for s in (0.0, 0.5, 1.0)
        for asked in (False, True)
    ]
    written = {
        "schema": SCHEMA,
        "model": loaded.source.repo,
        "split": "test",
        "vector_sha256": v.content_sha256,
        "conditions": conditions,
    }
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(written))
    found = evaluated(judged_by, v, loaded)
    assert found is not None
    assert found["scores"] == {
        "plain": [0, 0], "asked": [0, 2], "steered": [1, 0], "both": [1, 2]
    }  # fmt: skip
    with pytest.raises(MlxsteerError, match="mlxsteer eval nautical --json"):
        evaluated(judged_by, vector(seed=5), loaded)
    path.write_text(json.dumps({**written, "split": "dev"}))
    with pytest.raises(MlxsteerError, match="not of the test split"):
        evaluated(judged_by, v, loaded)
    path.write_text(json.dumps({**written, "model": "another/model"}))
    assert evaluated(judged_by, v, loaded) is None


GUIDE = "be a pirate tell me about the sea please"
PAIRS = [Completion(one.prompt, one.positive, one.negative) for one in judged().completions]


@functools.cache
def guided() -> dict[str, Any]:
    loaded = tiny()
    loaded.source = ref()
    prompts = ("how was your day", "why is the sky blue", "what should i cook", "be short")
    sides = [
        (style_guide.with_guide(GUIDE, prompt), conversation(None, (), prompt))
        for prompt in prompts
    ]
    said = [{"role": "assistant", "content": "the sea is blue now"}]
    read = {
        "last": [Pair(*both) for both in sides],
        "response": [Pair(*([*side, *said] for side in both)) for both in sides],
    }
    others = (calibrated(vector((1, 2), seed=3, name="other")),)
    return style_guide.measure_guide(
        loaded, tokenizer(), GUIDE, PAIRS, read, others, neutral=neutral(loaded), seconds=0.1
    )


def test_a_guide_is_held_against_its_vector() -> None:
    found = guided()
    assert found["words"] == 9
    for how in ("last", "response"):
        assert found["vectors"][how]["kl"] == pytest.approx(0.5, rel=0.05)
        assert found["vectors"][how]["pairs"] == 4
    ways = [f"{how} {s:g}" for how in ("last", "response") for s in (0.25, 0.5, 1)]
    assert list(found["kl"]) == ["plain", *ways, "other"]
    assert set(found["scores"]) == {*found["kl"], "guide", "both"}
    loaded = tiny()
    recipe = Recipe(("how was your day",), GUIDE, "")
    assert found["scores"]["guide"] == pytest.approx(
        LogOdds(loaded, tokenizer(), PAIRS, recipe=recipe)(OFF), abs=2e-4
    )
    assert found["first_token"]["asked_tokens"] - found["first_token"]["steered_tokens"] == 11
    assert min(found["kl"]["plain"]) > 0.01
    assert found["kl"]["last 1"] != found["kl"]["plain"]
    assert found["kl"]["last 1"] != found["kl"]["response 1"]
    assert [one["prompt"] for one in found["answers"]] == [one.prompt for one in PAIRS[:2]]


def test_the_guided_model_is_at_no_distance_from_itself() -> None:
    sides = [conversation(None, TURNS[:n], "what now") for n in (0, 1, 2)]
    texts = style_guide._joined(tokenizer(), sides, [Written(0, (5, 6, 7), "")] * 3)
    said = style_guide._distributions(Forced(model(), texts))
    assert style_guide._from(said, Forced(model(), texts), OFF) == pytest.approx(0, abs=1e-5)
    away = Steering((vector(scale=6.0), 1.0))
    assert style_guide._from(said, Forced(model(), texts), away).min() > 0.01


# how it goes on


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["steer_vs_prompt.py", *words])
    steer_vs_prompt.main()


def test_what_was_measured_is_kept_and_what_changed_is_measured_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded, path = tiny(), tmp_path / "study.json"
    loaded.source = ref()
    acting = {"terse": vector(scale=3.0), "joyful": vector(seed=1, scale=3.0)}
    times: list[str] = []
    tried: list[str] = []

    def once(model: Any, tokenizer: Any, found: Concept, v: Vector, *rest: Any) -> dict[str, Any]:
        times.append(found.name)
        scores = measure(model, tokenizer, found, v, TURNS, (0, 1))
        return {"vector_sha256": v.content_sha256, "scores": scores}

    def on_dev(model: Any, tokenizer: Any, found: Concept, v: Vector) -> dict[str, Any]:
        tried.append(found.name)
        return {"split": "dev", "scores": {arm: [0.5, 0.25] for arm in ARMS}}

    monkeypatch.setattr("mlxsteer.load", lambda *_, **__: (loaded, tokenizer()))
    monkeypatch.setattr(steer_vs_prompt, "one_concept", once)
    monkeypatch.setattr(steer_vs_prompt, "on_dev", on_dev)
    monkeypatch.setattr(
        steer_vs_prompt, "steering_of", lambda named, *_: Steering((acting[named[0][0].name], 1.0))
    )
    run(monkeypatch, "--concepts", "terse", "--json", str(path))
    run(monkeypatch, "--concepts", "terse", "joyful", "--json", str(path))
    assert times == ["terse", "joyful"]
    acting["terse"] = -1 * acting["terse"]
    run(monkeypatch, "--concepts", "terse", "joyful", "--json", str(path))
    assert times == ["terse", "joyful", "terse"]
    run(monkeypatch, "--concepts", "joyful", "--anew", "--json", str(path))
    assert times == ["terse", "joyful", "terse", "joyful"] == tried
    known = {"split": "test", "scores": {arm: [0.75, 0.5] for arm in ARMS}}
    monkeypatch.setattr(steer_vs_prompt, "evaluated", lambda *_: known)
    run(monkeypatch, "--concepts", "terse", "--json", str(path))
    assert len(times) == len(tried) == 4, "an evaluation is taken over, nothing is measured for it"
    assert json.loads(path.read_text())["figures"]["concepts"]["terse"]["judged"] == known
    figures = json.loads(path.read_text())["figures"]
    assert sorted(figures["concepts"]) == ["joyful", "terse"]
    here = machine()
    for entry in figures["concepts"].values():
        assert (entry["chip"], entry["commit"]) == (here["chip"], here["commit"])
    assert figures["concepts"]["terse"]["vector_sha256"] == acting["terse"].content_sha256
    assert "terse: asked " in capsys.readouterr().out
    loaded.source = ref(repo="another/model")
    with pytest.raises(MlxsteerError, match="is of tiny/random: choose another file"):
        run(monkeypatch, "--concepts", "terse", "--json", str(path))


@pytest.mark.parametrize("chosen", ["smollm2-135m", "another"])
def test_what_ships_no_vector_is_left_out_where_others_have_one(
    chosen: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loaded, path = tiny(), tmp_path / "study.json"
    loaded.source = ref()
    monkeypatch.setattr("mlxsteer.load", lambda *_, **__: (loaded, tokenizer()))
    steering = Steering((vector(), 1.0))
    monkeypatch.setattr(steer_vs_prompt, "steering_of", lambda *_: steering)
    monkeypatch.setattr(steer_vs_prompt, "evaluated", lambda *_: {"split": "test"})
    monkeypatch.setattr(steer_vs_prompt, "others_at_hand", lambda *_: [])
    monkeypatch.setattr("mlxsteer.neutral.Neutral.kept", lambda *_, **__: None)
    for name in ("one_concept", "measure_guide"):
        monkeypatch.setattr(steer_vs_prompt, name, lambda *_, **__: {})
    for name in ("said_of", "said_of_guide"):
        monkeypatch.setattr(steer_vs_prompt, name, lambda *_: "")
    run(monkeypatch, chosen, "--json", str(path))
    figures = json.loads(path.read_text())["figures"]
    shipped = {found.name for found in concepts() if found.vector_path("smollm2-135m")}
    assert "sea" in shipped
    assert "pirate" not in shipped
    everything = {found.name for found in concepts()}
    assert set(figures["concepts"]) == (shipped if chosen == "smollm2-135m" else everything)
    assert "guide" in figures


# what it is measured with


def test_the_talk_is_long_enough_and_names_no_concept() -> None:
    turns = neutral_turns()
    assert len(turns) == len(set(turns)) >= max(steer_vs_prompt.TURNS)
    text = " ".join(f"{turn.user} {turn.assistant}" for turn in turns).lower().split()
    assert not {found.name for found in concepts()} & set(text)


def test_the_guide_is_long_and_its_answers_keep_to_it() -> None:
    pairs, read = style_guide.guide_pairs(), style_guide.contrasts(style_guide.guide())
    training = {pair.negative if isinstance(pair.negative, str) else pair.negative[0]["content"]
                for some in read.values() for pair in some}  # fmt: skip
    assert {how: len(some) for how, some in read.items()} == {
        "last": 48,
        "response": 3 * len(concepts()),
    }
    assert len(style_guide.guide().split()) >= 500  # tokens are more than words
    assert len({one.prompt for one in pairs}) == len(pairs) >= 24
    assert not {one.prompt for one in pairs} & {*training, *neutral_prompts()}
    for one in pairs:
        assert _in_style(one.positive), one.positive
        assert not _in_style(one.negative), one.negative
        assert 0.7 < len(one.positive) / len(one.negative) < 1.4, one.prompt


def _in_style(text: str) -> bool:
    """Whether a text keeps those rules of the guide that can be counted."""
    sentences = re.split(r"(?<=[.!?:]) ", text)
    return (
        "First, " in text
        and "Second, " in text
        and bool(re.search(r"In short: \w+(, [\w ]+){2}\.$", text))
        and bool(re.search(r"\d", text))
        and max(len(sentence.split()) for sentence in sentences) <= 12
        and len(sentences[0].split()) <= 10
        and not re.search(r"[!;()]|\bI\b|\b(may|might|could|would|some|quite|just)\b", text)
    )


# how it is shown


def interval(mean: float, spread: float = 0.1) -> list[float]:
    return [mean - spread, mean, mean + spread, mean]


def record(asked: float = 1.0, steered: float = 2.0, left: float = 0.5) -> dict[str, Any]:
    """A small record: what asking and steering do, and what talk leaves of asking."""
    time = {"asked_tokens": 50, "steered_tokens": 40, "ratio": 1.25, "low": 1.2, "high": 1.3}
    time |= {"seconds": 0.1, "base_seconds": 0.125, "rounds": 5}

    def arms(share: float) -> dict[str, list[float]]:
        return {
            "plain": [0.0] * 4,
            "asked": interval(share * asked),
            "steered": interval(steered),
            "both": interval(3.0),
            "asked again": interval(asked),
        }

    entry = {
        "chip": "chip",
        "commit": "abc",
        "words": 12,
        "judged": {
            "split": "dev",
            "scores": arms(1.0),
            "detected": dict.fromkeys(("asked", "steered")),
        },
        "scores": {"0": arms(1.0), "12": arms(left)},
        "first_token": time,
    }
    test = {"split": "test", "scores": arms(1.0), "detected": {"asked": 0.25, "steered": 0.75}}
    guide = {
        "chip": "chip",
        "commit": "abc",
        "words": 600,
        "vectors": {how: {"layers": [10, 11, 19], "pairs": 48} for how in ("last", "response")},
        "others": ["terse"],
        "scores": {
            "plain": [0.0] * 4,
            "guide": interval(1.0),
            "last 1": interval(0.5),
            "response 1": interval(0.2),
            "both": interval(1.5),
            "terse": interval(0.1),
        },
        "kl": {
            "plain": interval(1.0),
            "last 1": interval(0.6),
            "response 1": interval(0.8),
            "terse": interval(1.4),
        },
        "kl_tokens": 300,
        "first_token": {**time, "asked_tokens": 640, "ratio": 9.0},
        "answers": [{"prompt": "p", "plain": "a | b", "guide": "c", "last 1": "d"}],
    }
    machine = {"chip": "the last to write", "cpu_cores": 2, "system": "Linux", "device": "CPU"}
    return {
        "machine": {**machine, "versions": {"mlx": "1"}},
        "model": {"repo": "owner/model", "quantization": "q4_1", "dtype": "float32"},
        "figures": {
            "turns": [0, 12],
            "concepts": {"one": entry, "two": {**entry, "judged": test}},
            "guide": guide,
        },
    }


def test_the_page_says_who_does_more() -> None:
    text = page(record(asked=1.0, steered=2.0))
    assert "asking does more in none, steering in 2 (one, two); in 0 the two" in text
    text = page(record(asked=2.0, steered=1.0))
    assert "asking does more in 2 (one, two), steering in none; in 0 the two" in text
    text = page(record(asked=2.0, steered=2.0))
    assert "in 2 the two cannot be told apart" in text
    assert re.search(r"\| two \| \+2\.00 \[\+1\.9\d, \+2\.0\d\] \|", text)
    assert "| 25% / 75% | test |" in text


def test_the_page_says_what_talk_leaves() -> None:
    text = page(record(left=0.5))
    assert "the effect of asking falls from +1.00 to +0.50 nats per token" in text
    assert "the effect of steering goes from +2.00 to +2.00 nats per token, no sure change" in text
    assert "There steering does more than asking: +1.50" in text
    assert "the effect of asking grows from +1.00 to +2.00" in page(record(left=2.0))
    text = page(record(steered=0.2))
    assert "There asking still does more than steering: -0.30" in text
    number = r"\[[-+.\d]+, [-+.\d]+\]"
    found = rf"\| 12 \| \+0\.50 {number}, 50% \| \+2\.00 {number}, 100% \|"
    assert re.search(found, page(record()))
    assert "| one | +1.00 | +0.50 | +2.00 | +2.00 | +1.00 |" in page(record())
    assert re.search(rf"\| 12 \| -0\.50 {number} \|", page(record(asked=-1.0)))  # no share of less


def test_the_page_says_what_a_vector_has_of_the_guide() -> None:
    text = page(record())
    assert "the guide's vector at 1 does less than the guide in context: +0.50" in text
    assert "next tokens nearer to those under the guide: KL 1.00 without, 0.60 with it" in text
    assert "The nearest of 2 (last, at 1) takes 40% of that KL away" in text
    assert "More than the guide's own vector" not in text
    away = record()
    away["figures"]["guide"]["kl"]["plain"] = interval(0.4)
    away["figures"]["guide"]["scores"]["terse"] = interval(0.9)
    said = page(away)
    assert "next tokens farther from those under the guide: KL 0.40 without, 0.60 with it" in said
    assert "None of 2 ways to read and strengths surely brings them nearer" in said
    assert "than the guide's own vector does on these answers: that of `terse` (+0.90" in said
    assert "a \\| b" in text


def test_the_block_of_the_readme_and_the_plots_are_made_of_the_record(tmp_path: Path) -> None:
    assert readme(None) == "Not measured yet for these vectors: `make study` does it.\n"
    text = readme(record())
    assert "](docs/prompting/fading.png)" in text
    assert "](docs/prompting.md)" in text
    assert re.search(r"concepts \| \+1\.00 \[.*?\] \| \+2\.00 \[.*?\] \| \+3\.00 ", text)
    assert re.search(r"guide of 600 tokens \| \+1\.00 \[.*?\] \| \+0\.50 \[.*?\] \|", text)
    assert "9.0 [1.2, 1.3] times as long" in text
    for name, draw in PLOTS.items():
        draw(record(), tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


# what is committed


def test_the_record_is_of_the_library_as_it_is() -> None:
    read = json.loads(RECORD.read_text())
    figures = read["figures"]
    entries = [*figures["concepts"].values(), figures["guide"]]
    assert not [e for e in entries if str(e["commit"]).endswith("+")], "measured on changed files"
    assert figures["guide"]["words"] >= 500
    shipped = {found.name for found in concepts() if found.vector_path("smollm2-135m")}
    assert shipped <= figures["concepts"].keys(), "run make study"
    for name, entry in figures["concepts"].items():
        found = concept(name)
        path = found.vector_path("smollm2-135m")
        if path is not None:
            v = read_vector(path)
            assert entry["vector_sha256"] == v.content_sha256, f"{name}: run make study"
            source = dataclasses.make_dataclass("Source", ["source"])(v.model)
            known = evaluated(found, v, source)
            same = entry["judged"]["split"] == "dev" if known is None else entry["judged"] == known
            assert same, f"{name}: run make study"


def test_the_page_and_its_plots_are_current(request: pytest.FixtureRequest) -> None:
    read = json.loads(RECORD.read_text())
    plots = [Path("prompting") / f"{name}.png" for name in PLOTS]
    text = page(read, plots)
    if request.config.getoption("--write-docs"):
        (DOCS / "prompting").mkdir(exist_ok=True)
        for name, draw in PLOTS.items():
            draw(read, DOCS / "prompting" / f"{name}.png")
        (DOCS / "prompting.md").write_text(text)
    assert (DOCS / "prompting.md").read_text() == text, "run make docs"
    assert [path for path in plots if not (DOCS / path).exists()] == []


def test_the_readme_is_current(request: pytest.FixtureRequest) -> None:
    read = json.loads(RECORD.read_text())
    block, path = readme(read), ROOT / "README.md"
    if request.config.getoption("--write-docs"):
        path.write_text(BLOCK.sub(lambda _: block, path.read_text()))
    found = BLOCK.search(path.read_text())
    assert found is not None
    assert found[0] == block, "run make docs"
