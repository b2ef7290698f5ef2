"""Make smollm2_tokens.json and tokenizers.json with llama.cpp, once and by hand.

    python tests/golden/make_tokens.py SMOLLM2.gguf

The tests compare token ids with these files and need no llama.cpp for it.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gguf import GGUFWriter
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from oracle import Llama  # noqa: E402

PRE = ["dbrx", "default", "gpt-2", "gpt-4o", "llama-bpe", "qwen2", "smaug-bpe", "smollm", "tekken"]
CONTROL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot_id|>"]
DEFINED = ["<tool>", "   "]
# What Gemma and Phi-3 have besides: text and type.
GEMMA = {"\n": 4, "\n\n": 4, "  ": 4, "   ": 4, "<start_of_turn>": 3, "<end_of_turn>": 3, "<b>": 4}
PHI = {"<|endoftext|>": 3, "<|user|>": 3, "<|end|>": 3, "<|assistant|>": 3, "<|x|>": 4}
CHATS = [
    "<start_of_turn>user\nHow  are\n\n\nyou?<end_of_turn>\n<start_of_turn>model\n",
    "     five spaces,<b>  a tag</b>\n \n",
    "<|user|>\nHow are you?<|end|>\n<|assistant|>\n  well<|end|> \t\nyes<|endoftext|> no <s> on",
    "<|x|>  a </s> b<|end|>",
]

# What is tokenized is written in the file itself; training leaves out what special tokens spell.
TEXTS = json.loads((HERE / "smollm2_tokens.json").read_text())["texts"]
PLAIN = [text for text in TEXTS if "<" not in text]


def write(
    path: Path, kind: str, pre: str, tokens: list[str], types: list[int], **more: Any
) -> None:
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    for name, value in more.items():
        getattr(writer, name)(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def byte_level() -> dict[str, Any]:
    """A vocabulary whose merges run across words: how a text is split decides everything."""
    trained = Tokenizer(BPE())
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(".{1,12}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=800, min_frequency=1, initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator(PLAIN * 2, trainer)
    model = json.loads(trained.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return {"tokens": tokens, "merges": [" ".join(pair) for pair in model["merges"]]}


def sentence_piece() -> dict[str, Any]:
    trained = Tokenizer(BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    trained.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=700, limit_alphabet=90, special_tokens=special, show_progress=False
    )
    trained.train_from_iterator(PLAIN, trainer)
    model = json.loads(trained.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    rank = {"".join(pair): -float(i) for i, pair in reversed(list(enumerate(model["merges"])))}
    scores = [rank.get(t, 0.0 if i < len(special) else -1e4 - i) for i, t in enumerate(tokens)]
    types = [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - len(special))
    return {
        "tokens": [*tokens, "[INST]", "<tool>"],
        "scores": [*scores, 0.0, 0.0],
        "types": [*types, 3, 4],
    }


def tokenize(path: Path, special: bool, more: Sequence[str] = ()) -> list[list[int]]:
    model = Llama(path, vocab_only=True)
    found = [model.tokenize(text, special=special) for text in [*TEXTS, *more]]
    model.close()
    return found


def main(smollm2: str) -> None:
    def save(name: str, content: dict[str, Any]) -> None:
        lines = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in content.items())
        (HERE / name).write_text(f"{{\n{lines}\n}}\n")

    save("smollm2_tokens.json", {"texts": TEXTS, "ids": tokenize(Path(smollm2), False)})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocabulary.gguf"
        bpe, spm = byte_level(), sentence_piece()
        n = len(bpe["tokens"])
        bpe["tokens"] += [*CONTROL, *DEFINED]
        bpe["types"] = [1] * n + [3] * len(CONTROL) + [4] * len(DEFINED)
        found: dict[str, Any] = {"texts": TEXTS, "chats": CHATS, "gpt2": bpe, "llama": spm}
        found |= {"gemma": GEMMA, "phi": PHI}
        for pre in PRE:
            more = {"add_token_merges": bpe["merges"], "add_bos_token_id": n}
            write(path, "gpt2", pre, bpe["tokens"], bpe["types"], **more, add_eos_token_id=n + 1)
            found[f"gpt2 {pre}"] = tokenize(path, True)
        for name, extra in (("prefix", {}), ("plain", {}), ("gemma", GEMMA), ("phi", PHI)):
            types = dict(zip(spm["tokens"], spm["types"], strict=True)) | extra
            scores = spm["scores"] + [0.0] * (len(types) - len(spm["scores"]))
            more = {"add_token_scores": scores, "add_add_space_prefix": name in ("prefix", "phi")}
            more |= {"add_bos_token_id": 1, "add_eos_token_id": 2, "add_unk_token_id": 0}
            more |= {"add_name": f"{name}-3"}  # llama.cpp knows Phi-3 by its name
            write(path, "llama", "default", list(types), list(types.values()), **more)
            found[f"llama {name}"] = tokenize(path, True, CHATS if extra else [])
        save("tokenizers.json", found)


if __name__ == "__main__":
    main(sys.argv[1])
