"""What the README promises, on SmolLM2: the demo, and all the way from contrast data to text."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mlxsteer.library import concepts

pytestmark = pytest.mark.usefixtures("smollm2_gguf")

PROMPT = "How was your day?"
JOY = "amazing delighted excited fun glad great happy joy love lucky thrilled wonderful"


def run(*words: object, cwd: Path) -> tuple[str, list[str]]:
    """Run a command that must end well; return stdout and the lines of stderr."""
    code = "from mlxsteer.cli import main; main()"
    command = [sys.executable, "-c", code, *map(str, words)]
    ended = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout, ended.stderr.splitlines()


def columns(table: str, edge: str = "│") -> list[list[str]]:
    """The words in every column of a drawn table; those of its head are between "┃"."""
    rows = [line.split(edge)[1:-1] for line in table.splitlines() if line[0] == edge]
    return [" ".join(column).split() for column in zip(*rows, strict=True)]


def joy(text: list[str]) -> int:
    return sum(word.strip(".,!").lower() in JOY.split() for word in text)


def test_the_demo(tmp_path: Path) -> None:
    out, err = run("demo", cwd=tmp_path)
    assert columns(out, "┃") == [["joyful=-1"], ["unsteered"], ["joyful=1"]]
    less, plain, more = columns(out)
    assert joy(more) > max(joy(plain), joy(less))
    assert less != plain
    talk = "\n".join(err)
    assert re.findall(r"^(\d)\. ", talk, re.MULTILINE) == ["1", "2", "3", "4"]
    assert re.search(r"strength 1 costs 0\.(49|50|51) nats", talk)
    assert re.search(r"tokens/s; \d+ s in all", talk)
    assert re.fullmatch(r"  mlxsteer generate .* -m llama-3.2-3b -s joyful=1 .*", err[-1])
    assert list(tmp_path.iterdir()) == []


def test_from_contrast_data_to_text(tmp_path: Path) -> None:
    foods = ["soup", "bread", "a cake", "rice", "an omelette", "salad"]
    pairs = [
        {"positive": f"Shout with joy about {food}!", "negative": f"Weep bitterly about {food}."}
        for food in foods
    ]
    (tmp_path / "glee.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    words = ("--pairs", "glee.jsonl", "--layers", "10-19", "--no-calibrate")
    out, _ = run("extract", *words, cwd=tmp_path)
    assert out == "glee-smollm2-135m.safetensors\n"
    run("vectors", "convert", out.strip(), "glee.gguf", cwd=tmp_path)
    shown, _ = run("vectors", "show", "glee.gguf", cwd=tmp_path)
    assert "10 11 12 13 14 15 16 17 18 19" in shown

    short = ("generate", PROMPT, "-n", 12)
    table, _ = run(*short, "-s", "glee.gguf=0.5", "--compare", cwd=tmp_path)
    plain, steered = columns(table)
    assert plain != steered
    text, err = run(*short, "-s", f"{out.strip()}=0.5", cwd=tmp_path)
    assert text.split() == steered
    assert "tokens read" in err[-1]


def test_shipped_concepts_need_no_extraction(tmp_path: Path) -> None:
    shipped = [c.name for c in concepts() if c.vector_path("smollm2-135m") is not None]
    assert len(shipped) >= 4
    words = [word for name in shipped for word in ("-s", f"{name}=0.5")]
    table, err = run("generate", PROMPT, "-n", 12, *words, "--compare", cwd=tmp_path)
    plain, steered = columns(table)
    assert plain != steered
    assert [line for line in err if "extracting" in line] == []
