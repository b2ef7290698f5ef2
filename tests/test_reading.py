"""Content and response are found in templates of every kind, and read teacher-forced."""

import functools
import re
from typing import Any

import numpy as np
import pytest
import tiny as models
from tiny import tiny, tokenizer
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

from mlxsteer.errors import MlxsteerError, UsageError
from mlxsteer.generate import forward
from mlxsteer.prompts import Pair, messages, render
from mlxsteer.reading import (
    READS,
    content_end,
    describe,
    parse_read,
    read_sides,
    response_start,
)

# What closes and opens messages in chat templates in use: special tokens, words, line ends.
TEMPLATES = {
    "chatml": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "think": "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "inst": "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content | trim }} [/INST]"
    "{% else %} {{ m.content }} {% endif %}{% endfor %}",
    "alpaca": "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant:\n{% endif %}",
    "bare": "{% for m in messages %}{{ m.content }}{% endfor %}",
}
# As GPT-4 and Llama 3 cut a text: punctuation takes the line ends behind it into its own piece.
PIECES = r"<\|\w+\|>| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"


def cutter(template: str) -> Any:
    """Return a tokenizer that cuts like the large vocabularies do, with a token for each piece."""
    ids: dict[str, int] = {}
    cut = Split(Regex(PIECES), "isolated").pre_tokenize_str

    def encode(text: str, **options: Any) -> list[int]:
        parts = re.split(r"(<\|\w+\|>)", text)
        pieces = [piece for part in parts if part for piece, _ in cut(part)]
        return [ids.setdefault(piece, len(ids)) for piece in pieces]

    backend = Tokenizer(WordLevel({"": 0}, ""))
    words: Any = PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template)
    words.encode = encode
    words.decode = lambda tokens: "".join(list(ids)[token] for token in tokens)
    return words


@functools.cache
def usual() -> tuple[Any, Any]:
    """The model and tokenizer that most tests share; nothing may be changed in them."""
    return tiny(), tokenizer()


def side(*contents: str, system: str = "Be short.") -> list[dict[str, str]]:
    roles = ["user", "assistant"] * len(contents)
    turns = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]
    return [{"role": "system", "content": system}, *turns] if system else turns


CONTENTS = [
    "How was your day",
    "How was your day?",
    "What is the",
    "Is this a",
    "a",
    "the",
    "Count: 1 2 3",
    "A line\nand another\n",
    "(really...)",
    "the a the a",
]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("answered", [False, True])
def test_the_end_of_the_content(template: str, content: str, answered: bool) -> None:
    words = cutter(TEMPLATES[template])
    chat = side("the first", "a second", content, *(["Well, the a."] if answered else []))
    tokens = render(words, chat)
    index = content_end(words, chat)
    before, last = words.decode(tokens[:index]), words.decode([tokens[index]])
    marked = side("the first", "a second", content.rstrip() + "§", *(["Well, the a."] * answered))
    end = words.decode(render(words, marked)).index("§")
    assert len(before) < end <= len(before + last)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("answer", ["Well, fine.", "a", "The sea", "the", "1", "(hm)"])
def test_the_start_of_the_response(template: str, answer: str) -> None:
    words = cutter(TEMPLATES[template])
    chat = side("How was your day?", answer)
    tokens = render(words, chat)
    start = response_start(words, chat)
    assert words.decode(tokens[start:]).strip().removeprefix("?") == answer
    assert words.decode(tokens[start + 1 :]).strip() != answer


def test_raw_text_has_a_content_and_a_response_too() -> None:
    words = cutter("")
    words.chat_template = None
    chat = side("How was your day?", " Fine, thanks.", system="")
    assert render(words, chat) == words.encode("How was your day? Fine, thanks.")
    assert words.decode(render(words, chat)[: content_end(words, chat) + 1]).endswith("day?")
    assert words.decode(render(words, chat)[response_start(words, chat) :]) == " Fine, thanks."
    assert content_end(words, "What now?") == len(words.encode("What now?")) - 1


HIDING = "{% for m in messages %}<|{{ m.role }}|>{% endfor %}"
TWICE = "{% for m in messages %}{{ m.content }}<|x|>{{ m.content }}<|y|>{% endfor %}"


@pytest.mark.parametrize("template", [HIDING, TWICE])
def test_a_content_that_cannot_be_found_is_refused(template: str) -> None:
    words = cutter(template)
    with pytest.raises(MlxsteerError, match="pair 3: the chat template does not show where"):
        content_end(words, "How was your day?", "pair 3")


def test_no_content_and_no_response_are_refused() -> None:
    words = cutter(TEMPLATES["chatml"])
    with pytest.raises(MlxsteerError, match="pair 1, positive has no user message"):
        content_end(words, [{"role": "system", "content": "Be short."}], "pair 1, positive")
    with pytest.raises(MlxsteerError, match="does not show where the response begins"):
        response_start(cutter(TWICE), side("How?", "So."))


# What is read


@pytest.mark.parametrize(
    ("read", "parsed"), [*((r, r) for r in READS), (-1, -1), (5, 5), ("-2", -2), ("7", 7)]
)
def test_reads(read: Any, parsed: Any) -> None:
    assert parse_read(read) == parsed


@pytest.mark.parametrize("read", ["first", "", "1.5", True, "LAST", None, 1.5, "1_0"])
def test_reads_that_do_not_exist(read: Any) -> None:
    with pytest.raises(UsageError, match="does not exist: use last, content, response, or a token"):
        parse_read(read)


TOPICS = ["how was your day", "why is the sky blue", "tell me about the sea", "what now"]
PLAIN = [Pair(side(t, system="be a pirate"), side(t, system="be helpful")) for t in TOPICS]
GIVEN = [
    Pair(side(t, "a pirate at sea", system="be short"), side(t, "please", system="be short"))
    for t in TOPICS
]


def test_last_and_an_index() -> None:
    model, words = usual()
    for read, position in (("last", -1), (-1, -1), (2, 2), ("-3", -3)):
        found = read_sides(model, words, PLAIN, read)
        for which, reading in found.items():
            assert list(reading.sequences) == [render(words, getattr(p, which)) for p in PLAIN]
            assert reading.positions == (position,) * len(PLAIN)


def test_content() -> None:
    words = tokenizer()
    found = read_sides(tiny(), words, [*PLAIN, *GIVEN], "content")
    for pair, tokens, position in zip(
        [*PLAIN, *GIVEN], found["negative"].sequences, found["negative"].positions, strict=True
    ):
        assert isinstance(position, int)
        user = next(m for m in messages(pair.negative) if m["role"] == "user")
        ends = render(words, [user], add_generation_prompt=False)[-2:]  # its last word, <end>
        assert tokens[position : position + 2] == ends
        assert tokens[position - 1 : position + 1] != ends  # the twin: one to the left


def test_a_given_response() -> None:
    words = tokenizer()
    found = read_sides(tiny(), words, GIVEN, "response")
    for which, length in (("positive", 4), ("negative", 1)):
        for pair, tokens, span in zip(
            GIVEN, found[which].sequences, found[which].positions, strict=True
        ):
            assert tokens == render(words, getattr(pair, which))
            assert span == (len(tokens) - length, len(tokens))


def greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    while len(tokens) < len(prompt) + count:
        token = int(np.array(forward(model, tokens))[-1].argmax())
        if token == 1:  # <end>
            break
        tokens.append(token)
    return tokens


def test_a_response_is_written_under_each_sides_own_instruction() -> None:
    model, words = usual()
    seen: list[tuple[str, int, int]] = []
    found = read_sides(
        model, words, PLAIN, "response", response_tokens=6, progress=lambda *s: seen.append(s)
    )
    for which, reading in found.items():
        for pair, tokens, span in zip(PLAIN, reading.sequences, reading.positions, strict=True):
            prompt = render(words, getattr(pair, which))
            assert tokens == greedy(model, prompt, 6)
            assert span == (len(prompt), len(tokens))
    written = [
        [s[p[0] :] for s, p in zip(r.sequences, r.positions, strict=True)]  # type: ignore[index]
        for r in found.values()
    ]
    assert written[0] != written[1]  # the twin: the instruction matters
    stages = ["writing positive responses", "writing negative responses"]
    assert list(dict.fromkeys(stage for stage, _, _ in seen)) == stages
    for stage in stages:
        done = [d for s, d, _ in seen if s == stage]
        assert done == sorted(done)
        assert done[-1] == 4 * 6
    assert {total for _, _, total in seen} == {4 * 6}


def test_a_given_response_beside_one_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    import mlxsteer.reading as module

    model, words = usual()
    pairs = [PLAIN[0], GIVEN[1], PLAIN[2], PLAIN[3]]
    whole = read_sides(model, words, pairs, "response", response_tokens=5)
    assert whole["positive"].sequences[1] == render(words, GIVEN[1].positive)
    monkeypatch.setattr(module, "ROWS", 2)
    assert read_sides(model, words, pairs, "response", response_tokens=5) == whole
    assert describe("response", pairs, 5) == (
        "mean of the given response or a greedy response of up to 5 tokens"
    )


@pytest.mark.parametrize(
    ("read", "pairs", "words"),
    [
        ("last", PLAIN, "last prompt token"),
        (-1, PLAIN, "last prompt token"),
        (-4, PLAIN, "prompt token -4"),
        (0, PLAIN, "prompt token 0"),
        ("content", PLAIN, "last content token"),
        ("response", PLAIN, "mean of a greedy response of up to 9 tokens"),
        ("response", GIVEN, "mean of the given response"),
    ],
)
def test_what_is_read_in_words(read: Any, pairs: list[Pair], words: str) -> None:
    assert describe(read, pairs, 9) == words


def test_an_empty_response_is_refused() -> None:
    model, words = tiny(), tokenizer()
    pairs = [PLAIN[0], Pair("be a pirate", "be short")]
    found = read_sides(model, words, pairs, "response", response_tokens=1)
    first = found["positive"].sequences[1][-1]
    words.eos_token_ids = {1, first}  # the model's first word ends its answer now
    with pytest.raises(MlxsteerError, match="pair 2, positive: the model answers nothing"):
        read_sides(model, words, pairs, "response", response_tokens=1)


@pytest.mark.parametrize(
    ("pairs", "options", "message"),
    [
        ([Pair("be " * 230, "be short")], {}, "pair 1, positive, with its response has 26[0-9]"),
        ([Pair("be short", "be " * 300)], {}, "pair 1, negative has 30[0-9] tokens"),
        ([PLAIN[0], Pair(GIVEN[0].positive, "be short")], {}, "pair 2, positive: one side of the"),
    ],
)
def test_pairs_that_have_no_response_to_read(
    pairs: list[Pair], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(MlxsteerError, match=message):
        read_sides(*usual(), pairs, "response", **options)


def test_what_fits_the_context_is_written() -> None:
    pairs = [Pair("be " * 230, "be short")]
    limit = models.CONFIG["max_position_embeddings"]
    prompt = len(render(tokenizer(), pairs[0].positive))
    found = read_sides(*usual(), pairs, "response", response_tokens=limit - prompt)
    assert len(found["positive"].sequences[0]) <= limit
    with pytest.raises(UsageError, match="response_tokens is 0: use 1 or more"):
        read_sides(*usual(), pairs, "response", response_tokens=0)
