"""Build a tokenizer from the metadata of a GGUF file.

Two kinds: byte-level BPE (`gpt2`: vocabulary, merges, and a pre-tokenizer known only by name) and
SentencePiece BPE (`llama`: vocabulary and scores, from which the merges follow). The token ids are
those of llama.cpp, which defines the format; only for `tekken` and `gpt-4o`, whose expressions it
approximates, those of the model's own tokenizer where letters carry combining marks.

A pre-tokenizer that is not in the table is refused: splitting words otherwise than in training
makes a model dull without any sign of an error. It knows nothing of weights.
"""

import logging
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

from mlx_lm.tokenizer_utils import (
    BPEStreamingDetokenizer,
    SPMStreamingDetokenizer,
    StreamingDetokenizer,
    TokenizerWrapper,
)
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from .errors import MlxsteerError
from .gguf import Header

__all__ = ["tokenizer_from_gguf"]

log = logging.getLogger("mlxsteer")

# What a `llama` vocabulary means when it does not say.
SENTENCE_PIECE_IDS = {"unknown": 0, "bos": 1, "eos": 2}

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5  # token types

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")  # one digit at a time
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Name in `tokenizer.ggml.pre` -> expressions that split a text one after the other.
PRE: dict[str, tuple[str, ...]] = {
    "dbrx": (LLAMA3,),
    "deepseek-r1-qwen": (QWEN2,),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
    "gpt-2": (GPT2,),
    "gpt-4o": (GPT4O,),
    "llama-bpe": (LLAMA3,),
    "llama-v3": (LLAMA3,),
    "llama3": (LLAMA3,),
    "qwen2": (QWEN2,),
    "smaug-bpe": (LLAMA3,),
    "smollm": (r"\p{N}", GPT2),
    "tekken": (TEKKEN,),
}
# These take a word of the vocabulary whole, and begin a text with BOS unless told otherwise.
WHOLE_WORDS = {"llama-bpe", "llama-v3", "llama3", "tekken"}

# In Phi-3 white space after a special token belongs to it, except after these.
PHI3 = "phi3"
PHI3_KEEPS = {"<s>", "<unk>", "<|endoftext|>"}

# Tokens that end a turn or a text, whatever the metadata forgot to say.
END_MARKERS = {
    "</s>",
    "<EOT>",
    "<end_of_turn>",
    "<|call|>",
    "<|end_of_text|>",
    "<|end|>",
    "<|endoftext|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|im_end|>",
    "<|return|>",
}


def tokenizer_from_gguf(header: Header) -> TokenizerWrapper:
    """The tokenizer, chat template and end tokens of the file, as mlx-lm expects them."""
    vocabulary = _Vocabulary(header)
    detokenizer: Callable[[Any], StreamingDetokenizer]
    kind = header.metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        backend, detokenizer = _byte_level(vocabulary), BPEStreamingDetokenizer
        begins = vocabulary.pre in WHOLE_WORDS
    elif kind == "llama":
        prefix = vocabulary.flag("add_space_prefix", True)
        backend = _sentence_piece(vocabulary, prefix)
        detokenizer = partial(SPMStreamingDetokenizer, trim_space=prefix)
        begins = True
    else:
        raise MlxsteerError(
            f"{header.path}: the tokenizer {kind!r} is not supported, only 'gpt2' and 'llama'; "
            "take the model in safetensors"
        )
    backend.add_tokens(vocabulary.added())
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=vocabulary.special("bos"),
        eos_token=vocabulary.special("eos"),
        unk_token=vocabulary.special("unknown"),
        pad_token=vocabulary.special("padding"),
        add_bos_token=vocabulary.flag("add_bos_token", begins),
        add_eos_token=vocabulary.flag("add_eos_token", False),
        chat_template=vocabulary.template(),
        clean_up_tokenization_spaces=False,
    )
    return TokenizerWrapper(tokenizer, detokenizer, eos_token_ids=vocabulary.ends())


class _Vocabulary:
    """The `tokenizer.ggml.*` metadata, checked as they are read."""

    def __init__(self, header: Header) -> None:
        self.header = header
        self.tokens: list[str] = self.strings("tokens")
        self.ids = {token: i for i, token in enumerate(self.tokens)}
        if len(self.ids) < len(self.tokens):
            twice = next(t for i, t in enumerate(self.tokens) if self.ids[t] != i)
            raise self.fail(f"the token {twice!r} occurs twice")
        types = self.get("token_type")
        self.types: list[int] = [NORMAL] * len(self.tokens) if types is None else types
        if len(self.types) != len(self.tokens):
            raise self.fail(f"{len(self.tokens)} tokens have {len(self.types)} types")

    def fail(self, problem: str) -> MlxsteerError:
        return MlxsteerError(f"{self.header.path}: damaged tokenizer: {problem}; download it again")

    def get(self, key: str) -> Any:
        return self.header.metadata.get(f"tokenizer.ggml.{key}")

    def template(self) -> str | None:
        value = self.header.metadata.get("tokenizer.chat_template")
        if value is not None and not isinstance(value, str):
            raise self.fail(f"tokenizer.chat_template is {value!r}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key)
        return default if value is None else bool(value)

    def strings(self, key: str) -> list[str]:
        values = self.get(key)
        if not isinstance(values, list) or not values or not isinstance(values[0], str):
            raise self.fail(f"tokenizer.ggml.{key} is missing")
        return values

    @cached_property
    def pre(self) -> str:
        name = self.get("pre")
        if name is None:
            log.warning(
                "%s does not name its pre-tokenizer: 'default' is used, as llama.cpp does; "
                "a newer conversion of this model may do better",
                self.header.path.name,
            )
            return "default"
        if name not in PRE:
            raise MlxsteerError(
                f"{self.header.path}: the pre-tokenizer {name!r} is not supported, only "
                f"{', '.join(PRE)}; take the model in safetensors"
            )
        return str(name)

    def special(self, role: str) -> str | None:
        """The text of the bos, eos, unknown or padding token."""
        index = self.index(role)
        return None if index is None else self.tokens[index]

    def index(self, role: str) -> int | None:
        index = self.get(f"{role}_token_id")
        if index is None and self.get("model") == "llama":
            index = SENTENCE_PIECE_IDS.get(role)
        if index is None:
            return None
        if type(index) is not int or not 0 <= index < len(self.tokens):
            raise self.fail(f"{role}_token_id is {index!r}, there are {len(self.tokens)} tokens")
        return index

    def added(self) -> list[AddedToken]:
        """The tokens that are found in a text before anything else splits it."""
        metadata = self.header.metadata
        greedy = metadata.get("general.architecture") == PHI3 and self.get("model") == "llama"
        return [
            AddedToken(
                token,
                normalized=False,
                special=kind != USER_DEFINED,
                rstrip=greedy and token not in PHI3_KEEPS,
            )
            for token, kind in zip(self.tokens, self.types, strict=True)
            if kind in (UNKNOWN, CONTROL, USER_DEFINED)
        ]

    def ends(self) -> set[int]:
        """Every token after which nothing follows: those named, and those known by their text."""
        named = {self.index(role) for role in ("eos", "eot", "eom")}
        marked = {self.ids[text] for text in END_MARKERS if text in self.ids}
        known = {i for i in marked if self.types[i] in (CONTROL, USER_DEFINED)}
        tag = self.ids.get("</s>", -1)  # in Gemma's vocabulary, where it is user defined
        known -= {tag} if tag in known and self.types[tag] == USER_DEFINED else set()
        if {"<|return|>", "<|call|>"} <= self.ids.keys():
            known.discard(self.ids.get("<|end|>", -1))  # there it ends a message, not a turn
        return {i for i in named if i is not None} | known


def _byte_level(vocabulary: _Vocabulary) -> Tokenizer:
    """GPT-2's kind: bytes spelt as printable characters, merged within the words of `pre`."""
    merges = [_pair(vocabulary, merge) for merge in vocabulary.strings("merges")]
    pre = vocabulary.pre
    model = BPE(vocabulary.ids, merges, ignore_merges=pre in WHOLE_WORDS)
    tokenizer = Tokenizer(model)
    splits = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in PRE[pre]]
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, spell])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _pair(vocabulary: _Vocabulary, merge: str) -> tuple[str, str]:
    left, _, right = merge[1:].partition(" ")
    left = merge[:1] + left
    ids = vocabulary.ids
    if left not in ids or right not in ids or left + right not in ids:
        raise vocabulary.fail(f"the merge {merge!r} has no token")
    return left, right


def _sentence_piece(vocabulary: _Vocabulary, prefix: bool) -> Tokenizer:
    """Llama 2's kind: spaces spelt as U+2581, unknown characters as bytes `<0x..>`."""
    merges = _merges(vocabulary)
    unknown = vocabulary.special("unknown")
    model = BPE(vocabulary.ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = (
        normalizers.Sequence([normalizers.Prepend("▁"), spaces])
        if prefix
        else normalizers.Sequence([spaces])
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return tokenizer


def _merges(vocabulary: _Vocabulary) -> list[tuple[str, str]]:
    """Every way to join two tokens into a third, the best score first."""
    scores = vocabulary.get("scores")
    if not isinstance(scores, list) or len(scores) != len(vocabulary.tokens):
        raise vocabulary.fail("tokenizer.ggml.scores does not fit the tokens")
    kinds = vocabulary.types
    ids = {t: i for t, i in vocabulary.ids.items() if kinds[i] in (NORMAL, USER_DEFINED, UNUSED)}
    found = [
        (-scores[i], i, ids[token[:cut]], token[:cut], token[cut:])
        for token, i in ids.items()
        for cut in range(1, len(token))
        if token[:cut] in ids and token[cut:] in ids
    ]
    return [(left, right) for *_, left, right in sorted(found)]
