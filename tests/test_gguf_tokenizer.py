"""Tokenizers from GGUF metadata give the ids of llama.cpp, which made the golden files."""

import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hostile.models import GGUF_TOKENIZERS
from mlx_lm.tokenizer_utils import BPEStreamingDetokenizer, SPMStreamingDetokenizer
from tiny import read_json
from tiny_gguf import METADATA, TOKENS

from mlxsteer.errors import MlxsteerError
from mlxsteer.gguf import Header, read_header
from mlxsteer.gguf_tokenizer import PRE, tokenizer_from_gguf

GOLDEN = Path(__file__).parent / "golden"
MADE = read_json(GOLDEN / "tokenizers.json")
TEXTS = MADE["texts"]


def header(**metadata: Any) -> Header:
    """A header with these metadata; keys of the tokenizer without their prefix."""
    prefixes = {"@": "tokenizer.", "#": ""}
    prefixed = {
        prefixes[key[0]] + key[1:] if key[0] in prefixes else f"tokenizer.ggml.{key}": value
        for key, value in metadata.items()
        if value is not ...
    }
    return Header(Path("m.gguf"), 3, prefixed, {}, 0, 0, "")


def tiny_header(**changes: Any) -> Header:
    prefix = "tokenizer.ggml."
    own = {k.removeprefix(prefix): v for k, v in METADATA.items() if k.startswith(prefix)}
    return header(**{**own, "@chat_template": METADATA["tokenizer.chat_template"], **changes})


def golden_header(kind: str, variant: str) -> Header:
    made = MADE[kind]
    n = len(made["tokens"]) - 7
    if kind == "gpt2":
        ends = {"bos_token_id": n, "eos_token_id": n + 1, "merges": made["merges"]}
        extra = {"pre": variant, **ends}
        return header(model=kind, tokens=made["tokens"], token_type=made["types"], **extra)
    types = dict(zip(made["tokens"], made["types"], strict=True)) | MADE.get(variant, {})
    return header(
        model=kind,
        tokens=list(types),
        token_type=list(types.values()),
        scores=made["scores"] + [0.0] * (len(types) - len(made["scores"])),
        add_space_prefix=variant in ("prefix", "phi"),
        bos_token_id=1,
        eos_token_id=2,
        unknown_token_id=0,
        **{"#general.architecture": "phi3" if variant == "phi" else "gemma3"},
    )


CASES = [key for key in MADE if key.startswith(("gpt2 ", "llama "))]
ROUGH = {"gpt2 gpt-4o", "gpt2 tekken"}  # llama.cpp's expression is not the model's


@pytest.mark.parametrize("case", CASES)
def test_the_ids_of_llama_cpp(case: str) -> None:
    tokenizer = tokenizer_from_gguf(golden_header(*case.split()))
    chats = MADE["chats"] if case in ("llama gemma", "llama phi") else []
    for text, ids in zip(TEXTS + chats, MADE[case], strict=True):
        marks = any(unicodedata.category(letter).startswith("M") for letter in text)
        if case not in ROUGH or not marks:
            assert tokenizer.encode(text) == ids, text


def test_pre_tokenizers_differ() -> None:
    names = ("default", "gpt-2", "gpt-4o", "llama-bpe", "qwen2", "smollm", "tekken")
    known = [MADE[f"gpt2 {pre}"] for pre in names]
    assert all(a != b for i, a in enumerate(known) for b in known[:i])
    other_names = {"deepseek-r1-qwen", "llama3", "llama-v3"}
    assert {f"gpt2 {pre}" for pre in PRE.keys() - other_names} <= set(CASES)


def test_white_space_after_the_tokens_of_phi_would_be_noticed() -> None:
    phi = golden_header("llama", "phi")
    other = replace(phi, metadata={**phi.metadata, "general.architecture": "llama"})
    wrong = tokenizer_from_gguf(other)
    assert [wrong.encode(text) for text in TEXTS + MADE["chats"]] != MADE["llama phi"]


@pytest.mark.parametrize("case", CASES)
def test_texts_come_back(case: str) -> None:
    tokenizer = tokenizer_from_gguf(golden_header(*case.split()))
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        if case not in ("llama prefix", "llama phi"):
            assert tokenizer.decode(ids) == text
        detokenizer = tokenizer.detokenizer
        for token in ids:
            detokenizer.add_token(token)
        detokenizer.finalize()
        # mlx-lm's detokenizers drop the space that a text begins with; llama.cpp's prefix puts one
        # after each special token
        assert detokenizer.text.replace(" ", "") == text.replace(" ", "")


def test_the_detokenizer_fits() -> None:
    bpe = tokenizer_from_gguf(golden_header("gpt2", "smollm")).detokenizer
    assert isinstance(bpe, BPEStreamingDetokenizer)
    for variant in ("prefix", "plain"):
        spm = tokenizer_from_gguf(golden_header("llama", variant)).detokenizer
        assert isinstance(spm, SPMStreamingDetokenizer)
        assert spm.trim_space == (variant == "prefix")


def test_ends_special_tokens_and_template() -> None:
    tokenizer = tokenizer_from_gguf(tiny_header())
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    ends = {TOKENS.index(text) for text in ("<|im_end|>", "<|endoftext|>", "</s>")}
    assert tokenizer.eos_token_ids == ends
    assert set(tokenizer.all_special_ids) >= {257, 258}
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True
    )
    said = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(chat) == said
    assert chat == tokenizer.encode(said)
    assert tokenizer.decode(tokenizer.encode("a<tool>b<s>"), skip_special_tokens=True) == "a<tool>b"


def test_a_model_without_template() -> None:
    tokenizer = tokenizer_from_gguf(tiny_header(**{"@chat_template": ...}))
    assert not tokenizer.has_chat_template


@pytest.mark.parametrize(
    ("changes", "ends"),
    [
        ({"eot_token_id": 0}, {0, 258, 259, 261}),
        ({"eom_token_id": 1, "eos_token_id": 5}, {1, 5, 258, 259, 261}),
        ({"token_type": [1] * 264}, {258}),  # the words of ordinary tokens end nothing
        ({"eos_token_id": ...}, {258, 259, 261}),
    ],
    ids=str,
)
def test_all_ends_are_known(changes: dict[str, Any], ends: set[int]) -> None:
    assert tokenizer_from_gguf(tiny_header(**changes)).eos_token_ids == ends


@pytest.mark.parametrize(
    ("text", "kind", "ends"),
    [
        ("<end_of_turn>", 3, True),
        ("<|end|>", 3, True),
        ("<|end|>", 4, True),  # as older conversions of Phi-3 have it
        ("<|im_end|>", 3, True),
        ("</s>", 3, True),
        ("</s>", 4, False),  # a tag of HTML in Gemma's vocabulary
        ("<end_of_turn>", 1, False),
    ],
)
def test_what_ends_a_turn_depends_on_its_kind(text: str, kind: int, ends: bool) -> None:
    tokens, types = [*TOKENS], [*METADATA["tokenizer.ggml.token_type"]]
    at = 0 if text not in tokens else tokens.index(text)
    tokens[at], types[at] = text, kind
    changes = {"eos_token_id": 263} if text == "<|im_end|>" else {}
    tokenizer = tokenizer_from_gguf(tiny_header(tokens=tokens, token_type=types, **changes))
    assert (at in tokenizer.eos_token_ids) == ends


def test_in_harmony_a_message_may_end_before_the_turn() -> None:
    tokens = [*TOKENS[:-3], "<|return|>", "<|call|>", "<|end|>"]
    types = [1] * 257 + [3] * 7
    assert tokens[261:] == ["<|return|>", "<|call|>", "<|end|>"]
    tokenizer = tokenizer_from_gguf(tiny_header(tokens=tokens, token_type=types))
    assert tokenizer.eos_token_ids == {258, 259, 261, 262}


@pytest.mark.parametrize(
    ("pre", "asked", "begins"),
    [
        ("smollm", None, False),
        ("smollm", True, True),
        ("llama-bpe", None, True),
        ("llama-bpe", False, False),
    ],
)
def test_a_text_begins_with_bos(pre: str, asked: bool | None, begins: bool) -> None:
    changes = {} if asked is None else {"add_bos_token": asked}
    tokenizer = tokenizer_from_gguf(tiny_header(pre=pre, **changes))
    assert tokenizer.encode("he")[:1] == ([257] if begins else [256])
    assert tokenizer.encode("he", add_special_tokens=False) == [256]


def test_sentence_piece_knows_its_first_three_tokens() -> None:
    full = golden_header("llama", "prefix")
    silent = {k: v for k, v in full.metadata.items() if not k.endswith("_token_id")}
    tokenizer = tokenizer_from_gguf(replace(full, metadata=silent))
    assert [tokenizer.encode(text) for text in TEXTS] == MADE["llama prefix"]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)


def test_a_text_may_end_with_eos() -> None:
    assert tokenizer_from_gguf(tiny_header(add_eos_token=True)).encode("he") == [256, 258]


def test_a_missing_pre_tokenizer_is_said(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer_from_gguf(tiny_header(pre=...))
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(
        "m.gguf does not name its pre-tokenizer: 'default' is used"
    )


@pytest.mark.parametrize("name", GGUF_TOKENIZERS)
def test_a_bad_tokenizer_is_refused(name: str) -> None:
    changes, words = GGUF_TOKENIZERS[name]
    with pytest.raises(MlxsteerError, match=words) as caught:
        tokenizer_from_gguf(tiny_header(**changes))
    assert str(caught.value).startswith("m.gguf")
    assert "\n" not in str(caught.value)


@pytest.mark.real
def test_the_default_model(smollm2_gguf: Path) -> None:
    golden = read_json(GOLDEN / "smollm2_tokens.json")
    tokenizer = tokenizer_from_gguf(read_header(smollm2_gguf))
    assert [tokenizer.encode(text) for text in golden["texts"]] == golden["ids"]
    assert [tokenizer.decode(ids) for ids in golden["ids"]] == golden["texts"]
    assert tokenizer.eos_token_ids == {0, 2}
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, tokenize=False
    )
    assert prompt.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.real
def test_digits_split_otherwise_would_be_noticed(smollm2_gguf: Path) -> None:
    golden, real = read_json(GOLDEN / "smollm2_tokens.json"), read_header(smollm2_gguf)
    wrong = replace(real, metadata={**real.metadata, "tokenizer.ggml.pre": "gpt-2"})
    tokenizer = tokenizer_from_gguf(wrong)
    assert [tokenizer.encode(text) for text in golden["texts"]] != golden["ids"]
