"""What a model answers is written once and kept, under a key of all that it depends on."""

import logging
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from tiny import ref, tiny, tokenizer, vector

from mlxsteer import neutral
from mlxsteer.calibrate import calibrate
from mlxsteer.errors import MlxsteerError
from mlxsteer.library import home
from mlxsteer.neutral import Neutral

PROMPTS = ["how was your day", "why is the sky blue", "tell me about the sea", "what now"]


class Written:
    """Counts what is really written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.times = 0
        real = Neutral.write

        def write(*arguments: Any, **options: Any) -> Neutral:
            self.times += 1
            return real(*arguments, **options)

        monkeypatch.setattr(Neutral, "write", write)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Written:
    return Written(monkeypatch)


def ask(model: Any = None, words: Any = None, **changes: Any) -> Neutral:
    options: dict[str, Any] = {"prompts": PROMPTS, "min_tokens": 40, **changes}
    return Neutral.kept(model or tiny(), words or tokenizer(), **options)


def files() -> list[Path]:
    return sorted((home() / "neutral").glob("*"))


def test_a_text_is_written_once(written: Written) -> None:
    first = ask()
    assert first == Neutral.write(tiny(), tokenizer(), prompts=PROMPTS, min_tokens=40)
    assert written.times == 2
    seen: list[str] = []
    again = ask(progress=lambda stage, done, total: seen.append(stage))
    assert (again, again.sha256, again.tokens) == (first, first.sha256, first.tokens)
    assert (written.times, seen, len(files())) == (2, [], 1)


def sharper(model: Any) -> Any:
    """Another last norm, which changes no argmax: the same text, from another model."""
    model.model.norm.weight = 6 * model.model.norm.weight
    return model


def row(model: Any) -> Any:
    """One other number in a layer, of a model that was loaded as the same."""
    w = model.model.layers[3].mlp.down_proj.weight
    model.model.layers[3].mlp.down_proj.weight = w + 0.01 * (mx.arange(w.shape[1]) == 5)
    return model


def named(**changes: Any) -> Any:
    model = tiny()
    model.source = ref(**changes)
    return model


def template(words: Any) -> Any:
    words._tokenizer.chat_template = words.chat_template.replace("<end>", "now")
    return words


def ends(words: Any) -> Any:
    words._eos_token_ids = {1, 7}
    return words


@pytest.mark.parametrize(
    "changes",
    [
        {"model": lambda: tiny(seed=1)},
        {"model": lambda: tiny("bfloat16")},
        {"model": lambda: tiny("4bit")},
        {"model": lambda: tiny(rope_theta=5e5)},
        {"model": lambda: sharper(tiny())},
        {"model": lambda: row(tiny())},
        {"model": named},
        {"words": lambda: template(tokenizer())},
        {"words": lambda: ends(tokenizer())},
        {"prompts": [*PROMPTS[:-1], "be short"]},
        {"prompts": PROMPTS[::-1]},
        {"min_tokens": 41},
    ],
    ids=lambda value: next(iter(value)),
)
def test_whatever_it_depends_on_moves_it(changes: dict[str, Any], written: Written) -> None:
    ask()
    ask(**{key: value() if callable(value) else value for key, value in changes.items()})
    assert (written.times, len(files())) == (2, 2)


def test_the_name_and_the_code_move_it_too(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    for model in (named(), named(), named(revision="1"), named(quantization="q4_1")):
        ask(model)
    assert written.times == len(files()) == 3
    monkeypatch.setattr(neutral, "ANSWER_TOKENS", 31)
    ask(named())
    monkeypatch.setattr(neutral, "__version__", "0.0.0")
    ask(named())
    assert written.times == len(files()) == 5


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('{"prompt_lengths":[', '{"prompt_lengths":[1'),
        ("]]", ",3]]"),
        ('"sequences"', '"sequence"'),
        ('"sequences":[[', '"sequences":[7,['),
        ("{", "\x00"),
        ("}", ""),
        ('{"prompt_lengths"', "[" * 9999),
    ],
)
def test_a_damaged_file_is_written_anew(
    old: str, new: str, written: Written, caplog: pytest.LogCaptureFixture
) -> None:
    whole = ask()
    (path,) = files()
    text = path.read_text()
    path.write_text(text.replace(old, new, 1))
    assert path.read_text() != text
    with caplog.at_level(logging.WARNING, "mlxsteer"):
        assert ask() == whole
    assert (written.times, path.read_text(), files()) == (2, text, [path])
    assert f"{path} is damaged" in caplog.text


@pytest.mark.parametrize("half", [b"", b"\xff\xfe"])
def test_bytes_that_are_no_text_are_written_anew(half: bytes, written: Written) -> None:
    whole = ask()
    files()[0].write_bytes(half)
    assert ask() == whole
    assert ask() == whole
    assert written.times == 2


def test_a_cache_that_cannot_be_written_is_told(
    written: Written,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MLXSTEER_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING, "mlxsteer"):
        assert ask() == ask()
    assert written.times == 2
    assert "MLXSTEER_HOME" in caplog.text


def test_nothing_is_kept_of_what_fails() -> None:
    with pytest.raises(MlxsteerError, match="4 neutral prompts gave"):
        ask(min_tokens=5000)
    with pytest.raises(MlxsteerError, match="0 neutral prompts gave"):
        ask(prompts=[])
    assert files() == []


def test_calibration_takes_what_is_kept(written: Written) -> None:
    model = sharper(tiny())
    text = Neutral.kept(model, tokenizer())
    for seed in (0, 1):
        found = calibrate(model, tokenizer(), vector(seed=seed))
        assert found.calibration is not None
        assert found.calibration["text_sha256"] == text.sha256
    assert written.times == 1
