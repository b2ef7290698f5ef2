"""Where things lie, what models/ and vectors/ may say, and the recipes that are shipped."""

import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from mlxsteer import library
from mlxsteer.completions import Completion
from mlxsteer.errors import MlxsteerError, UsageError
from mlxsteer.library import (
    Concept,
    HubFile,
    PackageFile,
    cached_vector_path,
    concept,
    concepts,
    data_folder,
    home,
    known_model,
    known_models,
    neutral_prompts,
    read_concept,
    read_model,
)
from mlxsteer.model_ref import ModelRef
from mlxsteer.prompts import SPLITS, Pair, messages, pairs_sha256
from mlxsteer.rules import Rule
from mlxsteer.vector import read_vector

ROOT = Path(__file__).parents[1]
HOW = {"method": "mean_diff", "layers": [1, 2]}

# Folders and the cache


def test_data_lies_in_the_checkout() -> None:
    assert data_folder("vectors") == ROOT / "vectors"
    assert data_folder("models") == ROOT / "models"


def test_data_lies_in_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site-packages"
    for folder in ("models", "mlxsteer/_data/vectors"):  # some other package may own `models`
        (site / folder).mkdir(parents=True)
    monkeypatch.setattr(library, "__file__", str(site / "mlxsteer" / "library.py"))
    assert data_folder("vectors") == site / "mlxsteer" / "_data" / "vectors"
    with pytest.raises(MlxsteerError, match=r"the shipped models are neither in .* reinstall"):
        data_folder("models")


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {}, "/u/.cache/mlxsteer"),
        ("darwin", {}, "/u/Library/Caches/mlxsteer"),
        ("darwin", {"XDG_CACHE_HOME": "/x"}, "/x/mlxsteer"),
        ("linux", {"XDG_CACHE_HOME": "x"}, "/u/.cache/mlxsteer"),
        ("linux", {"XDG_CACHE_HOME": "/x", "MLXSTEER_HOME": "/m"}, "/m"),
        ("linux", {"MLXSTEER_HOME": "~/m"}, "/u/m"),
        ("linux", {"MLXSTEER_HOME": "", "XDG_CACHE_HOME": ""}, "/u/.cache/mlxsteer"),
    ],
)
def test_home(
    platform: str, variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    for name in ("XDG_CACHE_HOME", "MLXSTEER_HOME"):
        monkeypatch.delenv(name)
    for name, value in {"HOME": "/u", **variables}.items():
        monkeypatch.setenv(name, value)
    assert home() == Path(expected)


def test_a_relative_home_is_made_absolute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLXSTEER_HOME", "here")
    assert home() == Path.cwd() / "here"


def test_listings_import_no_arrays() -> None:
    heavy = {"jinja2", "mlx", "numpy", "transformers"}
    code = f"""
import sys
from mlxsteer.library import concepts, known_models, neutral_prompts
concepts(), known_models(), neutral_prompts()
print(*{heavy} & {{name.split(".")[0] for name in sys.modules}})
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


# models/

SHA = "0123456789" * 4
MODEL = f"""
name = "tiny"
family = "llama"
layers = 2
width = 64
memory_gb = 1
thinking = ["<think>", "</think>"]
notes = "For tests."
[package]
name = "llm-tiny"
file = "llm_tiny/tiny.gguf"
[[hub]]
repo = "someone/tiny-gguf"
revision = "{SHA}"
quantization = "q4_1"
file = "tiny.gguf"
sha256 = "{"ab" * 32}"
[[hub]]
repo = "someone/tiny"
quantization = "none"
memory_gb = 2.5
notes = "whole"
"""


def model_file(folder: Path, text: str) -> Path:
    path = folder / "tiny.toml"
    path.write_text(text)
    return path


def test_a_model_file_is_read_whole(tmp_path: Path) -> None:
    model = read_model(model_file(tmp_path, MODEL))
    assert (model.name, model.family, model.layers, model.width) == ("tiny", "llama", 2, 64)
    assert model.hub == (
        HubFile("someone/tiny-gguf", "q4_1", SHA, "tiny.gguf", "ab" * 32),
        HubFile("someone/tiny", "none", memory_gb=2.5, notes="whole"),
    )
    assert model.package == PackageFile("llm-tiny", "llm_tiny/tiny.gguf")
    assert (model.memory_gb, model.notes) == (1.0, "For tests.")
    assert model.thinking == ("<think>", "</think>")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('name = "tiny"', 'name = "small"', "name is 'small'; it must be the file's name, 'tiny'"),
        ('family = "llama"', "", "family is missing"),
        ("width", "widht", "width is missing"),
        ("layers = 2", "layers = 0", "layers is 0; it must be a positive whole number"),
        ("layers = 2", "layers = true", "layers is True"),
        ("layers = 2", "layers = 2.0", r"layers is 2\.0; it must be a positive whole number"),
        ("memory_gb = 1", "memory_gb = nan", "memory_gb is nan; it must be a positive number"),
        ("notes", "note", r"unknown key note \(did you mean notes\?\)"),
        ('["<think>", "</think>"]', '"<think>"', "thinking is '<think>'; it must be a list of two"),
        ('["<think>", "</think>"]', '["<think>"]', "thinking is a list; it must be a list of two"),
        (f'revision = "{SHA}"', 'revision = "main"', r"hub\[0\]\.revision is 'main'; .* 40 hex"),
        ("sha256 = ", 'sha265 = "" #', r"unknown key hub\[0\]\.sha265 \(did you mean sha256\?\)"),
        ("ab" * 32, "ab", r"hub\[0\]\.sha256 is 'ab'; it must be 64 hex digits"),
        ("memory_gb = 2.5", "memory_gb = -1", r"hub\[1\]\.memory_gb is -1; it must be a positive"),
        ('repo = "someone/tiny"', 'repo = ""', r"hub\[1\]\.repo is ''; it must be a text"),
        ("[[hub]]", "[[hubs]]", r"hub is missing"),
        ("[package]", "[package.x]", r"package\.name is missing"),
        ("[package]", "[[package]]", r"package is a list; it must be a table \[package\]"),
        ("layers = 2", "layers = ", "not TOML: .* line 4"),
        ("layers = 2", "a = " + "[" * 2000, "not TOML"),
    ],
)
def test_a_bad_model_file_is_refused(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in MODEL
    path = model_file(tmp_path, MODEL.replace(old, new))
    with pytest.raises(MlxsteerError, match=says) as caught:
        read_model(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_model_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MlxsteerError, match="cannot be read"):
        read_model(tmp_path / "none.toml")
    (tmp_path / "tiny.toml").write_bytes(b'name = "\xff"')
    with pytest.raises(MlxsteerError, match="not UTF-8 at byte 8"):
        read_model(tmp_path / "tiny.toml")


def test_shipped_models_are_known_by_name() -> None:
    names = [model.name for model in known_models()]
    assert "smollm2-135m" in names
    assert [known_model(name) for name in names] == known_models()
    for other in ("nothing", "someone/tiny", "../pyproject", "models/smollm2-135m.toml", ""):
        assert known_model(other) is None


# vectors/

CONCEPT = """
name = "tiny"
positive = "big"
negative = "small"
sign = "A positive strength makes it bigger."
license = "CC0-1.0"
[recipe]
place = "suffix"
positive = "Be big."
negative = ""
prompts = "prompts.jsonl"
"""
PROMPTS = """
{"prompt": "One?", "split": "train", "topic": "numbers"}
{"prompt": "Two?", "split": "train"}
{"prompt": "Three?", "split": "dev"}
"""
PAIRS = '{"positive": "One", "negative": "Two"}\n'
COMPLETIONS = '{"prompt": "Three?", "split": "dev", "positive": "BIG", "negative": "small"}\n'
MEASURED = f"""completions = "completions.jsonl"{CONCEPT}
[rule]
kind = "lexicon"
sign = -1
words = "words.txt"
"""


def concept_folder(folder: Path, text: str = CONCEPT) -> Path:
    for name, content in {
        "vector.toml": text,
        "prompts.jsonl": PROMPTS,
        "pairs.jsonl": PAIRS,
        "completions.jsonl": COMPLETIONS,
        "words.txt": "small\ntiny bit\n",
    }.items():
        (folder / name).write_text(content)
    return folder


def test_a_recipe_trains_on_the_training_prompts_alone(tmp_path: Path) -> None:
    found = concept(concept_folder(tmp_path))
    assert (found.name, found.folder, found.license) == ("tiny", tmp_path, "CC0-1.0")
    assert found.pairs() == [Pair("One? Be big.", "One?"), Pair("Two? Be big.", "Two?")]
    assert found.texts("dev") == ("Three?",)
    with pytest.raises(MlxsteerError, match="tiny has no prompts of the split 'test'"):
        found.texts("test")
    with pytest.raises(UsageError, match="no split is called 'valid'"):
        found.texts("valid")  # type: ignore[arg-type]


def test_written_answers_to_training_prompts_are_the_pairs(tmp_path: Path) -> None:
    row = '{"prompt": "%s", "split": "%s", "positive": "Huge.", "negative": "Tiny."}\n'
    folder = concept_folder(tmp_path, MEASURED)
    rows = [row % ("Two?", "train"), row % ("Three?", "dev")]
    (folder / "completions.jsonl").write_text("".join(rows))
    asked = {"role": "user", "content": "Two?"}
    sides = ([asked, {"role": "assistant", "content": said}] for said in ("Huge.", "Tiny."))
    assert concept(folder).pairs() == [Pair(*sides)]


def test_pairs_may_be_written_out(tmp_path: Path) -> None:
    text = CONCEPT.split("[recipe]")[0] + 'pairs = "pairs.jsonl"'
    found = read_concept(concept_folder(tmp_path, text))
    assert found.recipe is None
    assert found.pairs() == [Pair("One", "Two")]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("negative", "negativ", "negative is missing"),
        ("[recipe]", "unit = 1\n[recipe]", "unknown key unit"),
        ("place", "plaice", "recipe.place is missing"),
        ("suffix", "prefix", "recipe.place is 'prefix'; it must be 'system' or 'suffix'"),
        ('negative = ""', 'negative = ""\nprompt = "x"', "unknown key recipe.prompt .*prompts"),
        ('negative = ""', 'negative = "Be big."', "says the same on both sides"),
        ('"tiny"', '"../tiny"', r"name is '\.\./tiny'; it must be small letters"),
        ("prompts.jsonl", "../prompts.jsonl", "recipe.prompts is .* the name of a file here"),
        ("prompts.jsonl", "none.jsonl", "none.jsonl: cannot be read"),
        ("prompts.jsonl", "pairs.jsonl", "pairs.jsonl, line 1: the key 'prompt' is missing"),
        ("[recipe]", 'pairs = "pairs.jsonl"\n[recipe]', r"either pairs or a table \[recipe\]"),
        ("[recipe]", "[recipes]", r"unknown key recipes \(did you mean recipe\?\)"),
    ],
)
def test_a_bad_concept_is_refused(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in CONCEPT
    with pytest.raises(MlxsteerError, match=says) as caught:
        read_concept(concept_folder(tmp_path, CONCEPT.replace(old, new)))
    assert str(caught.value).startswith(f"{tmp_path}")


def test_completions_and_a_rule_are_read(tmp_path: Path) -> None:
    found = read_concept(concept_folder(tmp_path, MEASURED))
    assert found.completions == (Completion("Three?", "BIG", "small", "dev"),)
    assert found.rule == Rule("lexicon", -1, ("small", "tiny bit"))
    plain = read_concept(concept_folder(tmp_path))
    assert (plain.completions, plain.rule) == ((), None)
    other = MEASURED.replace('"lexicon"', '"length"').replace('words = "words.txt"', "")
    assert read_concept(concept_folder(tmp_path, other)).rule == Rule("length", -1)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("completions.jsonl", "pairs.jsonl", "pairs.jsonl, line 1: the key 'prompt' is missing"),
        ("completions.jsonl", "../completions.jsonl", "completions is .* the name of a file here"),
        ("completions =", "completion =", r"unknown key completion \(did you mean completions\?\)"),
        ('"lexicon"', '"count"', "rule.kind is 'count'; it must be one of length, lexicon, senti"),
        ('"lexicon"', '"sentiment"', "unknown key rule.words"),
        ("sign = -1", "", "rule.sign is missing"),
        ("sign = -1", "sign = 0", "rule.sign is 0; it must be 1 or -1"),
        ("sign = -1", "sign = true", "rule.sign is True; it must be 1 or -1"),
        ("sign = -1", "sign = 1.0", r"rule.sign is 1\.0; it must be 1 or -1"),
        ("sign = -1", "sign = -2", "rule.sign is -2"),
        ('words = "words.txt"', "", "rule.words is missing"),
        ("words.txt", "../words.txt", "rule.words is .* the name of a file here"),
        ("words.txt", "none.txt", "none.txt: cannot be read"),
        ("words.txt", "prompts.jsonl", "prompts.jsonl, line 2: .* is no word or phrase"),
    ],
)
def test_bad_completions_and_rules_are_refused(
    tmp_path: Path, old: str, new: str, says: str
) -> None:
    assert old in MEASURED
    with pytest.raises(MlxsteerError, match=says) as caught:
        read_concept(concept_folder(tmp_path, MEASURED.replace(old, new)))
    assert str(caught.value).startswith(f"{tmp_path}")


def test_completions_without_prompts_are_refused(tmp_path: Path) -> None:
    head = MEASURED.split("[recipe]")[0]
    with pytest.raises(MlxsteerError, match="line 1: the concept has no dev prompt 'Three"):
        read_concept(concept_folder(tmp_path, head + 'pairs = "pairs.jsonl"'))


def test_a_concept_needs_contrast_data(tmp_path: Path) -> None:
    with pytest.raises(MlxsteerError, match=r"either pairs or a table \[recipe\]"):
        read_concept(concept_folder(tmp_path, CONCEPT.split("[recipe]")[0]))
    (concept_folder(tmp_path) / "prompts.jsonl").write_text(PROMPTS.replace("train", "test"))
    with pytest.raises(MlxsteerError, match=r"vector.toml: the recipe has no prompts to train on"):
        read_concept(tmp_path)


def test_a_name_means_the_library_and_a_path_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pirate").mkdir()
    concept_folder(Path("pirate"))
    assert concept("pirate").folder == ROOT / "vectors" / "pirate"
    assert concept("./pirate").name == concept(Path("pirate").absolute()).name == "tiny"
    for unknown in ("pirat", "vectors/pirat", "Pirate"):
        with pytest.raises(MlxsteerError, match=r"called '.*' \(did you mean pirate\?\)"):
            concept(unknown)
    with pytest.raises(MlxsteerError, match=r"\(there are: .*joyful, pirate, .*terse"):
        concept("zzz")
    with pytest.raises(MlxsteerError, match=r"vector.toml: cannot be read"):
        concept(tmp_path)


REF = ModelRef("someone/Tiny GGUF", SHA, "llama", 2, 64, "q4_1", "float32")


def test_vectors_are_found_by_model(tmp_path: Path) -> None:
    found = read_concept(concept_folder(tmp_path))
    assert found.vector_path("tiny-model") is None
    (tmp_path / "tiny-model.safetensors").touch()
    assert found.vector_path("tiny-model") == tmp_path / "tiny-model.safetensors"
    assert found.vector_path("x/../tiny-model") is None


def test_the_cache_keeps_one_vector_per_concept_and_model(tmp_path: Path) -> None:
    found = read_concept(concept_folder(tmp_path))
    path = cached_vector_path(found, REF, HOW)
    assert path.parent == home() / "vectors"
    assert re.fullmatch(r"tiny\.Tiny-GGUF\.[0-9a-f]{12}\.safetensors", path.name)
    assert path == cached_vector_path(found, replace(REF), HOW)
    assert not path.parent.exists()
    (tmp_path / "prompts.jsonl").write_text(PROMPTS.replace("One", "Four"))
    others = {
        path,
        cached_vector_path(read_concept(tmp_path), REF, HOW),
        cached_vector_path(found, REF, {**HOW, "method": "pca"}),
        cached_vector_path(found, replace(REF, revision="sha256:0"), HOW),
        cached_vector_path(found, replace(REF, quantization="none"), HOW),
        cached_vector_path(found, replace(REF, repo=""), HOW),
    }
    assert len(others) == 6


# What is shipped

# What a prompt must not say: the concept would then be on both sides.
ABOUT = {
    "agreeable": r"agree\w* disagree\w* reject\w* praise",
    "calm": r"calm\w* peace\w* relax\w* quiet\w* slow\w* panic\w* hurry nervous stress\w*",
    "casual": "casual informal relaxed chat chatting slang friendly hey kinda yep dude gonna",
    "confident": "confiden(t|ce) bold expert certain(ly)? sure doubt insecure shy nervous",
    "critical": r"critic\w* review\w* weak\w* risk\w* flaws? missing faults?",
    "formal": "formal formally polite politely informal casual slang register dude gonna",
    "gloomy": r"gloom\w* tired grey sad sadness hopeless pessimis\w* miserable worst dark",
    "hedging": "maybe perhaps possibly probably certain uncertain(ty)? sure depends might",
    "joyful": "joy joyful happy happiness ecstatic wonderful cheerful glad sad gloomy miserable",
    "pirate": "pirates? ships? sea captain treasure rum sails? sailing boats? ocean parrot aye",
    "poetic": "poet poets poetic poem poems poetry verses? rhymes? rhythm metaphor images? literal",
    "sea": "seas? oceans? waves? water ships? boats? sail(s|ing|or)? fish salt beach coast "
    "harbour tides? lakes? rivers? swim islands?",
    "simple": "simple simply easy easily child children kids? toys? small grown-up five-year-old",
    "technical": "technical technically engineers? units? formulas? precise(ly)? jargon",
    "terse": "terse short brief briefly concise long length details? one",
    "verbose": "verbose talkative wordy long(er)? length details? detailed examples? elaborate",
}


def words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def test_the_library_has_its_concepts() -> None:
    assert [found.name for found in concepts()] == sorted(ABOUT)
    assert len(ABOUT) == 16


@pytest.mark.parametrize("found", concepts(), ids=lambda found: found.name)
def test_a_shipped_recipe_is_sound(found: Concept) -> None:
    assert found.folder.name == found.name
    assert found.license in ("CC0-1.0", "MIT")
    assert found.sign.startswith("A positive strength")
    assert (found.folder / "README.md").is_file()
    assert found.recipe is not None
    counts = {split: len(found.texts(split)) for split in SPLITS}
    assert counts == {"train": 48, "dev": 12, "test": 24}
    topics = {split: {p.topic for p in found.prompts if p.split == split} for split in SPLITS}
    assert all("" not in topics[split] for split in SPLITS)
    assert not topics["train"] & (topics["dev"] | topics["test"])
    assert not topics["dev"] & topics["test"]
    assert len(topics["train"]) >= 12
    for pair in found.recipe.pairs():
        assert messages(pair.positive)[-1] == messages(pair.negative)[-1]
        assert messages(pair.positive)[0] != messages(pair.negative)[0]


@pytest.mark.parametrize("found", concepts(), ids=lambda found: found.name)
def test_shipped_prompts_do_not_name_the_concept(found: Concept) -> None:
    about = re.compile("|".join(ABOUT[found.name].split()))
    for prompt in found.prompts:
        assert 1 <= len(words(prompt.text)) <= 25, prompt.text
        assert not [word for word in words(prompt.text) if about.fullmatch(word)], prompt.text
    assert found.recipe is not None
    named = words(f"{found.name} {found.recipe.positive} {found.recipe.negative}")
    assert [word for word in named if about.fullmatch(word)]  # the twin: the list does find words


def test_no_prompt_is_shipped_twice() -> None:
    texts = [prompt.text for found in concepts() for prompt in found.prompts]
    texts += neutral_prompts()
    assert sorted({text.lower() for text in texts}) == sorted(text.lower() for text in texts)


@pytest.mark.parametrize("found", concepts(), ids=lambda found: found.name)
def test_shipped_completions_differ_in_the_concept_alone(found: Concept) -> None:
    answered = [(one.split, one.prompt) for one in found.completions]
    prompts = [(p.split, p.text) for p in found.prompts]
    assert answered == [one for one in prompts if one[0] != "train" or one in answered]
    trained = len(answered) - len(found.texts("dev")) - len(found.texts("test"))
    assert trained == 0 or trained >= 28
    sides = [(words(one.positive), words(one.negative)) for one in found.completions]
    ratios = [len(positive) / len(negative) for positive, negative in sides]
    if found.rule is not None and found.rule.kind == "length":
        assert all((ratio > 1) == (found.rule.sign > 0) for ratio in ratios)
        assert all(max(ratio, 1 / ratio) > 1.67 for ratio in ratios)
        assert max(len(side) for pair in sides for side in pair) <= 45
    else:
        assert all(0.6 <= ratio <= 1.67 for ratio in ratios)
        assert all(12 <= len(side) <= 40 for pair in sides for side in pair)
    for column in zip(*sides, strict=True):
        first, times = Counter(side[0] for side in column).most_common(1)[0]
        assert times <= len(column) / 4, first


def test_no_completion_is_shipped_twice() -> None:
    texts = [text for found in concepts() for c in found.completions for text in _sides(c)]
    assert len(texts) == 2 * (16 * 36 + 687)  # dev and test, and train
    assert len({" ".join(words(text)) for text in texts}) == len(texts)


@pytest.mark.parametrize("found", concepts(), ids=lambda found: found.name)
def test_shipped_completions_do_not_repeat_the_instruction(found: Concept) -> None:
    assert found.recipe is not None
    for said, side in ((found.recipe.positive, 0), (found.recipe.negative, 1)):
        texts = [set(words(_sides(one)[side])) for one in found.completions]
        for word in set(words(said)):
            if len(word) > 5:
                assert sum(word in text for text in texts) <= len(texts) / 6, word


@pytest.mark.parametrize(
    "found",
    [found for found in concepts() if found.rule and found.rule.kind == "lexicon"],
    ids=lambda found: found.name,
)
def test_shipped_words_tell_the_completions_apart(found: Concept) -> None:
    assert found.rule is not None
    either = "|".join(map(re.escape, sorted(found.rule.words, key=len, reverse=True)))
    pattern = re.compile(rf"(?<![\w'])(?:{either})(?!\w)")
    count = [0, 0]
    for one in found.completions:
        for side, text in enumerate(_sides(one)):
            count[side] += len(pattern.findall(text.lower()))
    assert found.rule.sign == 1
    assert count[0] >= 4 * max(count[1], 1)


# What positive completions have far more of, for concepts whose rule cannot be counted here: an
# exchange of the two sides would turn the sign of every measurement.
MARKS = {
    "gloomy": r"\b(nobody|never|again|nothing|worse|wrong|no|only)\b",
    "joyful": "!",
    "poetic": r"\b(moon|gold|breath|dream|hush|hearts?|sleep|dark|hands?|stars?|small|soft|like)\b",
    "simple": "[.!?]",  # in texts of one length: short sentences
    "technical": r"\d",
    "terse": r"^\S+( \S+){0,5}$",
    "verbose": ", ",
}


@pytest.mark.parametrize("found", concepts(), ids=lambda found: found.name)
def test_shipped_completions_are_not_exchanged(found: Concept) -> None:
    if found.rule is not None and found.rule.kind == "lexicon":
        assert found.name not in MARKS  # counted by its words
        return
    pattern = re.compile(MARKS[found.name])
    sides = [[pattern.findall(text.lower()) for text in _sides(one)] for one in found.completions]
    positive, negative = (sum(map(len, column)) for column in zip(*sides, strict=True))
    assert positive >= 3 * max(negative, 1)


def test_shipped_vectors_were_made_from_the_shipped_pairs() -> None:
    files = {path: found for found in concepts() for path in found.folder.glob("*.safetensors")}
    assert files
    for path, found in files.items():
        assert read_vector(path).pairs_sha256 == pairs_sha256(found.pairs()), path


def _sides(one: Completion) -> tuple[str, str]:
    return one.positive, one.negative


def test_neutral_prompts_are_everyday_questions() -> None:
    prompts = neutral_prompts()
    assert len(prompts) == 48
    about = re.compile("|".join(" ".join(ABOUT.values()).split()))
    everyday = {"lake", "small", "water"}  # as the words of everyday questions, not as a topic
    for prompt in prompts:
        assert 5 <= len(words(prompt)) <= 15, prompt
        named = [word for word in words(prompt) if about.fullmatch(word)]
        assert not set(named) - everyday, prompt
