"""Commands as they are typed, run in this process: a folder with models, vectors and concepts, and
what a command left behind there."""

import io
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import pytest
from hostile import vectors as hostile
from mlx.utils import tree_flatten
from tiny import CONFIG, ref, tiny, tokenizer, vector
from tiny_gguf import weights, write_gguf

from mlxsteer.cli import main
from mlxsteer.vector import Vector

HOSTILE = Path(hostile.__file__).parent
PROMPT = "how was your day"
GENERATE = ("generate", PROMPT)
SHORT = ("-n", 12)
STRONG = ["-s", "strong.safetensors=1"]
EXTRACT = ("extract", "salty", "-o", "made.safetensors")


@dataclass
class Ran:
    """What a command left behind; `err` are the lines on stderr, `notes` those that are notes."""

    code: int
    out: str
    err: list[str]
    notes: list[str]


Cli = Callable[..., Ran]


def chat(instruction: str, word: str) -> list[dict[str, str]]:
    return [
        {"role": "system", "content": instruction},
        {"role": "user", "content": f"tell me about the {word}"},
    ]


def save_model(folder: Path, left_out: str = "") -> Path:
    """A tiny model as a folder, its head sharp enough that a nat can be moved."""
    folder.mkdir()
    model = tiny()
    model.model.norm.weight = 6 * model.model.norm.weight
    arrays = dict(tree_flatten(model.parameters()))
    arrays.pop(left_out, None)
    mx.save_safetensors(str(folder / "model.safetensors"), arrays)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    tokenizer()._tokenizer.save_pretrained(folder)
    return folder


def save_concept(folder: Path) -> None:
    """A concept with all that it is judged by."""
    folder.mkdir()
    (folder / "vector.toml").write_text(
        'name = "nautical"\npositive = "of the sea"\nnegative = "of the land"\n'
        'sign = "Positive is more sea."\nlicense = "CC0-1.0"\ncompletions = "completions.jsonl"\n'
        '[recipe]\nplace = "system"\npositive = "be a pirate"\nnegative = "be short"\n'
        'prompts = "prompts.jsonl"\n[rule]\nkind = "length"\nsign = -1\n'
    )
    words = ("day", "sky", "cook", "answer", "long", "blue")
    prompts = [{"prompt": f"tell me about {word}", "split": "train"} for word in words]
    prompts += [{"prompt": f"what about {word}", "split": "test"} for word in words[:3]]
    answers = [
        {"prompt": f"what about {word}", "split": "test", "positive": "sea", "negative": "sky"}
        for word in words[:3]
    ]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    (folder / "completions.jsonl").write_text("\n".join(map(json.dumps, answers)))


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model `tiny`, a concept `salty`, vectors, and much that is wrong."""
    root = tmp_path_factory.mktemp("place")
    save_model(root / "tiny")
    save_model(root / "hole", left_out="model.layers.2.mlp.up_proj.weight")
    (root / "hollow").mkdir()
    (root / "hollow" / "config.json").write_text(json.dumps(CONFIG))
    good = write_gguf(root / "tiny.gguf", weights())
    (root / "cut.gguf").write_bytes(good.read_bytes()[:-100])
    write_gguf(root / "bert.gguf", weights(), metadata={"general.architecture": "bert"})

    (root / "salty").mkdir()
    (root / "salty" / "vector.toml").write_text(
        'name = "salty"\npositive = "be a pirate"\nnegative = "be helpful"\n'
        'sign = "Positive is more."\nlicense = "CC0-1.0"\npairs = "pairs.jsonl"\n'
    )
    pairs = [
        {"positive": chat("be a pirate", word), "negative": chat("be helpful assistant", word)}
        for word in ("sea", "sky", "day", "long short answer", "blue sky tonight")
    ]
    (root / "salty" / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    long = {"positive": "sea " * 300, "negative": "sky"}
    (root / "long.jsonl").write_text(json.dumps(long))
    (root / "long.txt").write_text("sea\n" + "sea " * 300)

    save_concept(root / "nautical")
    deaf = save_model(root / "deaf")  # its chat template refuses a system message
    template = deaf / "chat_template.jinja"
    refuses = "{{ raise_exception('no system') if messages[0]['role'] == 'system' }}"
    template.write_text(refuses + template.read_text())

    strong = vector((1, 2), scale=20.0, name="strong").replace(model=None)
    strong.save(root / "strong.safetensors")
    vector((3,), seed=5, scale=20.0).replace(model=None).save(root / "other.safetensors")
    Vector.from_rows("narrow", {1: [1.0, 2.0]}).save(root / "narrow.safetensors")
    Vector.from_rows("deep", {7: strong.directions[0]}).save(root / "deep.safetensors")
    more = ref(n_layers=8)
    Vector.from_rows("tall", strong.rows(), model=more).save(root / "tall.safetensors")
    (root / "headless.f32").write_bytes(strong.directions.tobytes())
    (root / "new.safetensors").write_bytes(hostile.build(hostile.record(format_version=2)))
    (root / "cut.safetensors").write_bytes((root / "strong.safetensors").read_bytes()[:-9])
    for name in ("vector_nan.safetensors", "vector_altered.safetensors"):
        (root / name).write_bytes((HOSTILE / name).read_bytes())
    for name in ("pairs_empty.jsonl", "pairs_not_json.jsonl", "pairs_equal.jsonl"):
        (root / name).write_bytes((HOSTILE / name).read_bytes())
    return root


@pytest.fixture
def cli(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Cli]:
    """Run a command in `place`, on the model there; nothing new may be left behind by an error."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("MLXSTEER_MODEL", "tiny")
    log = logging.getLogger("mlxsteer")
    before = log.handlers[:], log.level, log.propagate

    def run(*words: object, stdin: str = "") -> Ran:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        files = set(place.rglob("*"))
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        assert isinstance(end.value.code, int)
        out, err = capsys.readouterr()
        lines = err.splitlines()
        assert "" not in lines
        notes = [line for line in lines if line.startswith("note: ")]
        if end.value.code:
            assert set(place.rglob("*")) == files
        return Ran(end.value.code, out, [line for line in lines if line not in notes], notes)

    yield run
    log.handlers[:], log.level, log.propagate = before


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to load a model fails."""

    def load_model(*arguments: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("mlxsteer.cli.sources.load_model", load_model)


def refused(ran: Ran, code: int, *words: str) -> None:
    """One line says what is wrong; stdout has nothing."""
    assert (ran.code, ran.out) == (code, "")
    assert len(ran.err) == 1
    line = ran.err[0]
    assert line.startswith("error: ")
    assert [word for word in words if word not in line] == []
    assert "says where" not in line  # of errors that nobody foresaw


def written(cli: Cli, *words: object) -> str:
    ran = cli("generate", PROMPT, *SHORT, *words)
    assert ran.code == 0, ran.err
    assert "written" in ran.err[-1]
    return ran.out


def cells(table: str) -> list[list[str]]:
    """The words of every column of a drawn table, its head first."""
    rows = [line.split(line[0])[1:-1] for line in table.splitlines() if line[0] in "┃│"]
    return [" ".join(column).split() for column in zip(*rows, strict=True)]


@pytest.fixture
def made(place: Path) -> Iterator[Path]:
    """Where `EXTRACT` writes."""
    path = place / "made.safetensors"
    yield path
    path.unlink(missing_ok=True)


def kept() -> list[Path]:
    return sorted(Path(os.environ["MLXSTEER_HOME"], "vectors").rglob("*.*"))


def interrupt(*arguments: object, **options: object) -> None:
    raise KeyboardInterrupt
