"""`generate` as it is typed: what it prints, where, with which notes."""

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from typed import PROMPT, SHORT, STRONG, Cli, cells, refused, written

from mlxsteer.vector import read_vector


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
