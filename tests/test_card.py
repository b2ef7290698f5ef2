"""The card of a repository: metadata that the Hub takes, text that does nothing."""

import json
import re
from dataclasses import replace
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from huggingface_hub import ModelCard, ModelCardData
from tiny import ref, vector

from mlxsteer.card import LICENSES, TAG, Made, Part, library_card, part_card
from mlxsteer.coherence import Coherence
from mlxsteer.evidence import Condition, Evidence, NullScore
from mlxsteer.stats import Interval

KEYS = {"base_model", "base_model_relation", "language", "library_name", "license", "license_name"}
KEYS |= {"model-index", "model_name", "tags"}
HOSTILE = (
    '<script>alert(1)</script> <img src=x onerror="x"> [a](javascript:alert(1)) ![b](http://e.x/p)'
    " `c` | d\n---\nlicense: mit\n---\n# e\n\n* f \\` <b>&lt;script&gt; http://e.x www.e.x <!--"
)


def part(**fields: Any) -> Part:
    joy = vector(name="salty").replace(model=ref(), license="CC0-1.0", method="mean_diff")
    made = Made(joy, "tiny", True, "tiny/random", "tiny/random")
    words = ("salty", "talks of salt", "talks plainly", "Positive is more.", "CC0-1.0")
    return replace(Part(*words, made=(made,)), **fields)


def evaluation(whole: Part, **more: Any) -> dict[str, Any]:
    """What `mlxsteer eval --json` writes, with changes."""
    zero, half = Interval(0, -0.1, 0.1, 0.5, 0.5), Interval(0.5, 0.25, 0.75, 1e-4, 0.1)
    good = Coherence(10.0, 0.0, 0.9)

    def condition(name: str, strength: float, asked: bool, answer: str) -> Condition:
        effect = half if strength or asked else None
        holds = strength < 1
        return Condition(
            name=name,
            strength=strength,
            asked=asked,
            scores=(0.5, 0.7),
            effect=effect,
            detected=None,
            counts=(),
            coherence=good,
            coherent=holds,
            kl=1.01 * strength,
            margin=None,
            prompt_tokens=20.0,
            answers=(answer, answer),
        )

    conditions = (
        condition("baseline", 0.0, False, "Fine."),
        condition("asked", 0.0, True, "Salt!"),
        condition("steered -1", -1.0, False, "Sweet."),
        condition("steered 1", 1.0, False, "Salty!"),
    )
    evidence = Evidence(
        vector="salty",
        concept="salty",
        sentence="Positive is more.",
        vector_sha256=whole.made[0].vector.content_sha256,
        model="tiny/random",
        split="test",
        prompts=("How are you?", "And you?"),
        rule="",
        conditions=conditions,
        nulls=(NullScore("refit", "refit 1", 1.0, (0.1, 0.2), zero),),
        others=(),
        against_null=half,
        beaten_p=1e-4,
        against_prompt=zero,
        counted_against_prompt=None,
        detector_auroc=None,
        settings={},
        remarks=(),
    )
    return {**json.loads(json.dumps(evidence.to_json())), **more}


class Strict(yaml.SafeLoader):
    """YAML in which no key may occur twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"a key twice: {keys}"
        made: dict[Any, Any] = super().construct_mapping(node, deep)
        return made


def metadata(card: str) -> dict[str, Any]:
    """The front matter, held to the Hub's rules."""
    found = re.match(r"---\n(.*?\n)---\n\n(.*)", card, re.S)
    assert found
    assert found[1].isascii() or found[1].encode()
    data = yaml.load(found[1], Strict)
    assert isinstance(data, dict)
    assert data.keys() <= KEYS
    bases = data["base_model"] if isinstance(data["base_model"], list) else [data["base_model"]]
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+", base) for base in bases)
    assert data["base_model_relation"] in ("adapter", "finetune", "merge", "quantized")
    assert data["license"] in (*LICENSES, "other")
    assert (data["license"] == "other") == ("license_name" in data)
    assert re.fullmatch(r"[a-z]{2}", data["language"])
    assert TAG in data["tags"]
    assert len(set(data["tags"])) == len(data["tags"])
    assert all(isinstance(tag, str) and 0 < len(tag) < 100 for tag in data["tags"])
    for model in data.get("model-index", []):
        assert isinstance(model["name"], str)
        for result in model["results"]:
            assert result["task"]["type"]
            assert {"name", "type"} <= result["dataset"].keys()
            assert all(isinstance(one["value"], float) for one in result["metrics"])
    return data


@pytest.mark.parametrize(
    "bad",
    [
        "x",
        "---\nlicense: mit\nlicense: mit\n---\n\n",
        "---\nlicense: mine\nbase_model: a/b\nbase_model_relation: adapter\n---\n\n",
        "---\nlicense: mit\nbase_model: /home/x\nbase_model_relation: adapter\n---\n\n",
        "---\nlicense: mit\nbase_model: a/b\nbase_model_relation: steering\n---\n\n",
    ],
)
def test_the_check_of_metadata_can_fail(bad: str) -> None:
    with pytest.raises((AssertionError, KeyError)):
        metadata(bad)


def test_metadata_makes_it_findable() -> None:
    whole = part()
    whole = replace(whole, evaluations=(evaluation(whole),))
    card = part_card(whole, "alice/salty")
    data = metadata(card)
    assert (data["library_name"], data["base_model"]) == ("mlxsteer", "tiny/random")
    assert (data["license"], data["base_model_relation"]) == ("cc0-1.0", "adapter")
    (model,) = data["model-index"]
    assert model["results"][0]["metrics"][0]["value"] == 0.5
    read = ModelCard(card).data
    assert isinstance(read, ModelCardData)
    assert read.eval_results
    assert read.eval_results[0].metric_value == 0.5


def test_every_result_of_a_library_says_of_which_concept_it_is() -> None:
    names = ("salty", "sweet")
    parts = [replace(part(), name=name, evaluations=(evaluation(part()),)) for name in names]
    (model,) = metadata(library_card(parts, "alice/lib"))["model-index"]
    assert [result["dataset"]["name"] for result in model["results"]] == [
        "completions of salty",
        "completions of sweet",
    ]
    for result in model["results"]:
        (metric,) = result["metrics"]
        assert metric["name"] == "effect of strength 1 on tiny, nats per token"


def test_several_licences_and_models() -> None:
    first, second = part(), part(name="sweet", license="My Own", base_models=("a/base",))
    data = metadata(library_card([first, second], "alice/lib"))
    assert (data["license"], data["license_name"]) == ("other", "CC0-1.0; My Own")
    assert data["base_model"] == ["tiny/random", "a/base"]


def test_what_was_measured_is_shown_and_nothing_else() -> None:
    whole = part()
    assert "was not measured" in part_card(whole, "a/b")
    measured = replace(whole, evaluations=(evaluation(whole),), plots=("effect.png",))
    card = part_card(measured, "a/b")
    for shown in (
        "+0.50 &#91;+0.25, +0.75&#93;",
        "| 1.01 | no |",
        "salty FAILS on",
        "| -1 | Sweet. |",
        "| +1 | Salty! |",
    ):
        assert shown.replace("&#91;", "[").replace("&#93;", "]") in card
    assert "![plot](effect.png)" in card
    strange = (evaluation(whole, vector_sha256="0" * 64),)
    of_another = replace(whole, evaluations=strange, plots=("effect.png",))
    assert part_card(of_another, "a/b") == part_card(whole, "a/b")


def test_how_far_it_can_be_pushed_is_shown() -> None:
    whole = part()
    assert "can be pushed was not measured" in part_card(whole, "a/b")
    made = whole.made[0]
    safe = made.vector.replace(calibration={"kl": 1.0, "safe": {"low": -1.25, "high": 2.0}})
    assert "Safe strengths: tiny -1.25 to 2." in part_card(
        replace(whole, made=(replace(made, vector=safe),)), "a/b"
    )
    for strange in ({"low": "x", "high": 2.0}, {"low": 1.0}, 3, None):
        bad = made.vector.replace(calibration={"kl": 1.0, "safe": strange})
        assert "can be pushed was not measured" in part_card(
            replace(whole, made=(replace(made, vector=bad),)), "a/b"
        )


def test_a_library_says_what_passes_with_all_of_it_corrected() -> None:
    whole = part()
    assert "strongest null" not in library_card([whole], "a/b")
    passes = replace(whole, evaluations=(evaluation(whole, passed=True),))
    alone = replace(whole, name="sweet", evaluations=(evaluation(whole, passed=False),))
    card = library_card([passes, alone, replace(whole, name="bitter")], "a/b")
    row = {line.split("]")[0]: line for line in card.splitlines() if line.startswith("| [")}
    assert "+0.45 [+0.40, +0.50]: passes" in row["| [salty"]
    assert "+0.45 [+0.40, +0.50]: FAILS" in row["| [sweet"]
    assert "| - |" in row["| [bitter"]


@pytest.mark.parametrize(
    "change",
    [
        {"conditions": None},
        {"conditions": [3, {}]},
        {"conditions": [{"strength": 1.0, "effect": {"mean": "x"}}]},
        {"prompts": 3, "verdict": 4},
        {"rule": ["x"], "nulls": [{"scores": ["x", 1]}]},
        {"nulls": 3},
    ],
)
def test_a_strange_evaluation_breaks_nothing(change: dict[str, Any]) -> None:
    whole = part()
    card = part_card(replace(whole, evaluations=(evaluation(whole, **change),)), "a/b")
    metadata(card)
    metadata(library_card([replace(whole, evaluations=(evaluation(whole, **change),))], "a/b"))


def test_text_of_others_is_inert() -> None:
    hostile = part(positive=HOSTILE, negative=HOSTILE, sign=HOSTILE, license=HOSTILE)
    joy = hostile.made[0].vector.replace(method=HOSTILE, token=HOSTILE, evidence={})
    hostile = replace(hostile, made=(replace(hostile.made[0], vector=joy),))
    conditions = [
        {"name": HOSTILE, "strength": 1.0, "asked": False, "answers": [HOSTILE]},
    ]
    words = evaluation(hostile, prompts=[HOSTILE], verdict=[HOSTILE], split=HOSTILE, rule=HOSTILE)
    hostile = replace(hostile, evaluations=({**words, "conditions": conditions},))
    for card in (part_card(hostile, "a/b"), library_card([hostile, hostile], "a/b")):
        assert metadata(card)["license"] == "other"
        body = card.split("\n---\n\n", 1)[1]
        assert not re.search(r"<(?=[a-z!/])", body)
        assert not re.search(r"\]\((?!\w+[\w./-]*\))", body)  # links are to files beside it
        assert not re.search(r"(?i)https?:/|javascript:|www\.", body)
        assert not [line for line in body.splitlines() if line.startswith(("---", "# e", "* f"))]
        tables = re.findall(r"(?:^\|.*\n)+", body, re.M)
        assert tables
        for rows in tables:
            assert len({line.count("|") for line in rows.splitlines()}) == 1


def test_the_check_of_text_can_fail() -> None:
    assert re.search(r"<(?=[a-z!/])", HOSTILE)
    assert re.search(r"\]\((?!\w+[\w./-]*\))", HOSTILE)
    assert re.search(r"(?i)https?:/|javascript:|www\.", HOSTILE)


def test_the_same_content_is_the_same_card() -> None:
    assert part_card(part(), "a/b") == part_card(part(), "a/b")
    assert "alice/lib:salty" in part_card(part(), "alice/lib", "salty/")
    assert not part_card(part(), "alice/lib", "salty/").startswith("---")
