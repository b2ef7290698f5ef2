"""Contrast data from files, and how it becomes token ids on any tokenizer and on any day."""

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from mlxsteer import prompts
from mlxsteer.errors import MlxsteerError, UsageError
from mlxsteer.prompts import (
    Pair,
    Prompt,
    Recipe,
    Side,
    check_length,
    has_chat_template,
    messages,
    pairs_sha256,
    read_pairs,
    read_prompts,
    render,
    template_record,
)

HOSTILE = Path(__file__).parent / "hostile"
SYSTEM = {"role": "system", "content": "Talk plainly."}
USER = {"role": "user", "content": "How are you?"}
START = {"role": "assistant", "content": "Well, I"}

CHATML = (
    "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}<|end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
REFUSES_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not\nsupported') }}"
    "{% endif %}" + CHATML
)
DROPS_SYSTEM = (
    "{% for message in messages %}{% if message.role != 'system' %}[{{ message.content }}]"
    "{% endif %}{% endfor %}"
)
LLAMA_DATE = (
    "{%- if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}"
    "{% endif %}"
    "Today is {{ date_string }}.\n" + CHATML
)
MISTRAL_DATE = (
    "{%- macro today() %}{{ strftime_now('%A, %-d %B %Y, %H:%M') }}{% endmacro %}"
    "Today is {{ today() }}.\n" + CHATML
)
THINKING = CHATML + "{% if enable_thinking is defined and not enable_thinking %}<none>{% endif %}"


def tokenizer(template: str | None = CHATML, **options: Any) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are bytes, so that any text decodes to itself."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(alphabet)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, **options)
    made.chat_template = template
    return made


def written(made: Any, side: Side, **options: Any) -> str:
    return str(made.decode(render(made, side, **options)))


def text_of(side: Side, chat_template: str | None = CHATML, **options: Any) -> str:
    return written(tokenizer(chat_template), side, **options)


# Reading files


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_pairs_are_texts_or_messages(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"positive": "Aye\u2028matey", "negative": "Yes"},
        {"positive": [SYSTEM, USER, START], "negative": [USER]},
    ]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join(lines).encode())  # as some editors save it
    assert read_pairs(path) == [Pair(**row) for row in rows]
    assert read_pairs(str(path)) == read_pairs(path)


BAD = [
    ("empty", None, "empty"),
    ("blank", None, "empty"),
    ("not_json", 3, "not JSON: .* at column 21"),
    ("cut_off", 2, "not JSON"),
    ("array", 1, "not JSON"),
    ("not_object", 2, "a list is no object"),
    ("number_line", 2, "17 is no object"),
    ("unknown_key", 2, "unknown key 'weight'; the keys are positive, negative"),
    ("missing_key", 2, "the key 'negative' is missing"),
    ("key_twice", 2, "the key 'positive' stands twice"),
    ("empty_side", 2, "negative is empty"),
    ("no_messages", 2, "positive is empty"),
    ("number_side", 2, "positive is 1; it must be a text or a list of messages"),
    ("null_side", 2, "positive is None; it must be a text"),
    ("object_side", 2, "positive is a table; it must be a text or a list"),
    ("number_content", 2, "positive: the content of message 1 is 5; it must be a text"),
    ("empty_content", 2, "positive: the content of message 1 is empty"),
    ("unknown_role", 2, "message 1 has the role 'captain'; it must be system, user, assistant"),
    ("list_role", 2, "message 1 has the role a list"),
    ("message_key", 2, "message 1 is a table; it must have role and content only"),
    ("message_text", 2, "message 1 is 'Aye'"),
    ("equal", 3, "both sides are equal"),
    ("equal_as_message", 2, "both sides are equal"),
    ("surrogate", 2, "half a surrogate pair"),
    ("not_utf8", 2, "not UTF-8 at byte 16 of the line"),
    ("utf16", 1, "not UTF-8"),
    ("deep", 2, "not JSON that can be read"),
    ("huge_number", 2, "not JSON that can be read"),
]


@pytest.mark.parametrize(("name", "line", "says"), BAD)
def test_a_bad_pairs_file_is_refused_with_its_line(name: str, line: int | None, says: str) -> None:
    path = HOSTILE / f"pairs_{name}.jsonl"
    with pytest.raises(MlxsteerError, match=says) as caught:
        read_pairs(path)
    assert str(caught.value).startswith(f"{path}, line {line}: " if line else f"{path}: ")
    assert "\n" not in str(caught.value)


def test_every_hostile_pairs_file_is_tried() -> None:
    names = {path.stem.removeprefix("pairs_") for path in HOSTILE.glob("pairs_*")}
    assert names == {name for name, _, _ in BAD}


def test_an_unreadable_pairs_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.jsonl"):
        with pytest.raises(MlxsteerError, match="cannot be read"):
            read_pairs(path)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
JSON = SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(st.text(), SCALARS, max_size=2)
MESSAGES = st.lists(
    st.dictionaries(st.sampled_from(["role", "content", "x"]), SCALARS)
    | st.fixed_dictionaries({"role": st.sampled_from(prompts.ROLES), "content": st.text()}),
    max_size=2,
)
ROWS = st.dictionaries(
    st.sampled_from(["positive", "negative", "prompt", "split"]), JSON | MESSAGES, max_size=2
)


def refusal(read: Callable[[Path], object], path: Path) -> str | None:
    """What the reader says against the file, None when it takes it."""
    try:
        assert read(path)
    except MlxsteerError as error:
        return str(error)
    return None


@settings(max_examples=60)
@given(data=st.binary() | st.text().map(str.encode) | ROWS.map(json.dumps).map(str.encode))
def test_random_files_raise_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "random.jsonl"
    path.write_bytes(data)
    for read in (read_pairs, read_prompts):
        said = refusal(read, path)
        assert said is None or (said.startswith(f"{path}") and "\n" not in said)


@settings(max_examples=60)
@given(positive=JSON | MESSAGES, negative=JSON | MESSAGES)
def test_random_sides_raise_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, positive: Any, negative: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "sides.jsonl"
    write(path, {"positive": positive, "negative": negative})
    said = refusal(read_pairs, path)
    assert said is None or (said.startswith(f"{path}, line 1: ") and "\n" not in said)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
CHATS = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(prompts.ROLES), "content": TEXTS}),
    min_size=1,
    max_size=3,
)


@settings(max_examples=60)
@given(sides=st.lists(st.tuples(TEXTS | CHATS, TEXTS | CHATS), min_size=1, max_size=3))
def test_valid_pairs_come_back(
    tmp_path_factory: pytest.TempPathFactory, sides: list[tuple[Side, Side]]
) -> None:
    sides = [(p, n) for p, n in sides if messages(p) != messages(n)] or [("more", "less")]
    path = tmp_path_factory.getbasetemp() / "valid.jsonl"
    write(path, *({"positive": p, "negative": n} for p, n in sides))
    pairs = read_pairs(path)
    assert pairs == [Pair(p, n) for p, n in sides]
    assert pairs_sha256(pairs) == pairs_sha256([Pair(p, n) for p, n in sides])


def test_prompts_have_a_split_and_a_topic(tmp_path: Path) -> None:
    rows = [{"prompt": "Hi!", "split": "dev"}, {"prompt": "Why?", "split": "test", "topic": "art"}]
    path = write(tmp_path / "prompts.jsonl", *rows)
    assert read_prompts(path) == (Prompt("Hi!", "dev"), Prompt("Why?", "test", "art"))


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "Hi!", "split": "valid"}, "split is 'valid'; it must be train, dev, test"),
        ({"prompt": "Hi!", "split": ["dev"]}, "split is a list"),
        ({"prompt": "Hi!"}, "the key 'split' is missing"),
        ({"prompt": "", "split": "dev"}, "prompt is empty"),
        ({"prompt": 3, "split": "dev"}, "prompt is 3; it must be a text"),
        ({"prompt": "Hi!", "split": "dev", "topic": 3}, "topic is 3"),
        ({"prompt": "Hi!", "split": "dev", "topics": "art"}, "unknown key 'topics'"),
        ({"prompt": "how  ARE you?", "split": "dev"}, "the prompt stands already at .*, line 1"),
    ],
)
def test_a_bad_prompt_is_refused_with_its_line(
    tmp_path: Path, row: dict[str, object], says: str
) -> None:
    path = write(tmp_path / "prompts.jsonl", {"prompt": "How are you?", "split": "train"}, row)
    with pytest.raises(MlxsteerError, match=f"prompts.jsonl, line 2: {says}"):
        read_prompts(path)


# Pairs and recipes


def test_pairs_with_one_meaning_have_one_hash() -> None:
    said = pairs_sha256([Pair("Aye", "Yes")])
    assert pairs_sha256([Pair([{"content": "Aye", "role": "user"}], "Yes")]) == said
    for other in ([Pair("Yes", "Aye")], [Pair("Aye", "Yes")] * 2, [Pair([SYSTEM, USER], "Yes")]):
        assert pairs_sha256(other) != said


@pytest.mark.parametrize(
    ("place", "positive", "negative"),
    [
        (
            "system",
            [{"role": "system", "content": "More."}, {"role": "user", "content": "Hi!"}],
            "Hi!",
        ),
        ("suffix", "Hi! More.", "Hi!"),
    ],
)
def test_a_recipe_gives_each_prompt_twice(place: Any, positive: Side, negative: Side) -> None:
    recipe = Recipe(("Hi!", "Why?"), "More.", "", place)
    assert recipe.pairs()[0] == Pair(positive, negative)
    assert len(recipe.pairs()) == 2


def test_a_recipe_that_makes_no_contrast_is_refused() -> None:
    with pytest.raises(UsageError, match="place is 'prefix'"):
        Recipe(("Hi!",), "More.", "Less.", "prefix")  # type: ignore[arg-type]
    with pytest.raises(MlxsteerError, match="no prompts"):
        Recipe((), "More.", "Less.")
    with pytest.raises(MlxsteerError, match="the same on both sides"):
        Recipe(("Hi!",), "More.", "More. ")


# Chat templates


def test_a_text_is_one_user_message() -> None:
    assert text_of("How are you?") == "<|user|>\nHow are you?<|end|>\n<|assistant|>\n"
    assert text_of("How are you?") == text_of([USER])
    assert text_of([USER], add_generation_prompt=False) == "<|user|>\nHow are you?<|end|>\n"


def test_the_tokens_are_those_of_the_tokenizer_itself() -> None:
    plain = tokenizer()
    expected = plain.apply_chat_template(
        [SYSTEM, USER], add_generation_prompt=True, return_dict=False
    )
    assert render(plain, [SYSTEM, USER]) == expected
    assert render(TokenizerWrapper(plain), [SYSTEM, USER]) == expected


def test_a_last_message_of_the_assistant_is_the_open_start_of_the_answer() -> None:
    prompt = text_of([USER])
    assert text_of([USER, START]) == prompt + "Well, I"
    assert text_of([USER, START, USER]).count("Well, I<|end|>") == 1  # the twin: not the last


@pytest.mark.parametrize("template", [LLAMA_DATE, MISTRAL_DATE])
def test_the_date_is_pinned(template: str) -> None:
    made = tokenizer(template)
    unpinned = str(made.apply_chat_template([USER], tokenize=False))
    assert "2024" not in unpinned.splitlines()[0]  # the twin: left alone, the day of the test
    first = text_of([USER], template).splitlines()[0]
    assert first in ("Today is 26 Jul 2024.", "Today is Friday, 26 July 2024, 12:00.")
    assert text_of([USER], template).endswith(text_of([USER]))


def test_the_pinned_date_is_what_strftime_writes() -> None:
    day = datetime(2024, 7, 26, 12)
    assert {code: day.strftime(code) for code in prompts._STRFTIME} == prompts._STRFTIME
    assert day.strftime("%d %b %Y") == prompts.DATE_STRING


@pytest.mark.parametrize("lead", ["", "\n", "  ", "\n\n  ", "  {% if true %}\n  a{% endif %}"])
def test_pinning_changes_nothing_else(lead: str) -> None:
    made = tokenizer(lead + CHATML)
    expected = made.apply_chat_template([USER], tokenize=False, add_generation_prompt=True)
    assert text_of([USER], lead + CHATML) == expected


def test_a_template_of_several_names_uses_the_default() -> None:
    made = tokenizer()
    made.chat_template = {"default": LLAMA_DATE, "tool_use": "no"}
    assert written(made, [USER]) == text_of([USER], LLAMA_DATE)
    assert template_record(made) == template_record(tokenizer(LLAMA_DATE))


def test_the_thinking_mode_is_passed_on_and_recorded() -> None:
    made = tokenizer(THINKING)
    assert written(made, [USER], thinking=False).endswith("<none>")
    assert not written(made, [USER], thinking=True).endswith("<none>")
    assert not written(made, [USER]).endswith("<none>")
    assert template_record(made)["thinking"] is None
    assert template_record(made, thinking=True)["thinking"] is True
    wrapped = TokenizerWrapper(made)  # knows that this vocabulary has no thinking
    assert written(wrapped, [USER]).endswith("<none>")
    assert template_record(wrapped)["thinking"] is False


def test_a_refused_system_message_is_said_plainly() -> None:
    with pytest.raises(MlxsteerError, match=r"refuses system messages: .*suffix") as caught:
        text_of([SYSTEM, USER], REFUSES_SYSTEM)
    assert "\n" not in str(caught.value)
    assert text_of([USER], REFUSES_SYSTEM) == text_of([USER])


def test_a_forgotten_system_message_is_an_error() -> None:
    with pytest.raises(MlxsteerError, match=r"leaves out the system message 'Talk plainly\.'"):
        text_of([SYSTEM, USER], DROPS_SYSTEM)
    assert text_of([USER], DROPS_SYSTEM) == "[How are you?]"


@pytest.mark.parametrize(
    "template", ["{{ messages[5].content.x }}", "{{ raise_exception('no') }}", "{% if %}"]
)
def test_a_template_that_fails_is_one_line(template: str) -> None:
    for side in ([USER], [SYSTEM, USER], [SYSTEM]):
        with pytest.raises(MlxsteerError, match="template refuses the conversation: ") as caught:
            text_of(side, template)
        assert "\n" not in str(caught.value)


def in_python(
    chat: list[dict[str, str]], add_generation_prompt: bool, enable_thinking: bool
) -> str:
    """A template as mlx-lm writes some: it takes no other arguments."""
    return "".join(message["content"] for message in chat) + ">" * add_generation_prompt


def test_a_template_written_in_python() -> None:
    made = TokenizerWrapper(tokenizer(None), chat_template=in_python)
    assert has_chat_template(made)
    assert written(made, [SYSTEM, USER]) == "Talk plainly.How are you?>"
    record = template_record(made)
    assert len(record["sha256"]) == 64
    assert record["arguments"] == {"add_generation_prompt": True}


def test_without_a_chat_template_the_text_is_raw() -> None:
    made = tokenizer(None)
    assert not has_chat_template(made)
    assert not has_chat_template(TokenizerWrapper(made))
    assert has_chat_template(tokenizer())
    assert text_of([SYSTEM, USER], None) == "Talk plainly.\n\nHow are you?"
    assert text_of([SYSTEM, USER], template=False) == "Talk plainly.\n\nHow are you?"
    assert text_of([USER, START], None) == "How are you?Well, I"


def test_raw_text_stands_behind_one_start_token() -> None:
    made = tokenizer(None, bos_token="<s>")
    start = made.get_vocab()["<s>"]
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", start)]
    )
    assert render(made, "Once").count(start) == render(made, "<s>Once").count(start) == 1
    chat = tokenizer("<s>" + CHATML, bos_token="<s>")
    chat.backend_tokenizer.post_processor = made.backend_tokenizer.post_processor
    assert render(chat, "Once").count(start) == 1


def test_nothing_to_read_is_refused() -> None:
    with pytest.raises(MlxsteerError, match="no message"):
        text_of([])
    with pytest.raises(MlxsteerError, match="no tokens"):
        text_of("", None)


def test_the_record_names_the_template() -> None:
    record = template_record(tokenizer())
    assert record["arguments"]["date_string"] == "26 Jul 2024"
    assert record == template_record(TokenizerWrapper(tokenizer())) | {"thinking": None}
    assert record["sha256"] != template_record(tokenizer(LLAMA_DATE))["sha256"]
    assert json.loads(json.dumps(record)) == record
    raw: dict[str, Any] = {"sha256": "", "arguments": {}, "thinking": None}
    assert template_record(tokenizer(), template=False) == raw == template_record(tokenizer(None))


def test_a_prompt_over_the_context_is_refused() -> None:
    check_length([1] * 8, 8, "the prompt")
    check_length([1] * 8, None, "the prompt")
    with pytest.raises(MlxsteerError, match=r"pair 3 has 9 tokens, .* at most 8"):
        check_length([1] * 9, 8, "pair 3")
