"""The README's own commands and code run as they stand."""

import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from minihub import TOKEN, started
from tiny import tiny, tokenizer, vector

from mlxsteer import Steered, Steering, forward, generate

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = [
    (kind, textwrap.dedent(text))
    for kind, text in re.findall(r"^ *```(\w+)\n(.*?)```", README, re.S | re.M)
]
COMMANDS = [
    line.split("  #")[0]
    for kind, text in BLOCKS
    if kind == "sh"
    for line in text.splitlines()
    if line.startswith("mlxsteer ")
]

HUB = re.compile(r"you/|vectors search")  # what needs a connection


def run(*words: str, cwd: Path, **env: str) -> str:
    ended = subprocess.run(
        [sys.executable, *words], cwd=cwd, env=os.environ | env, capture_output=True, text=True
    )
    assert ended.returncode == 0, f"{words}: {ended.stderr}"
    return ended.stdout


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 5
    assert {kind for kind, _ in BLOCKS} >= {"sh", "python", "text"}


@pytest.mark.usefixtures("smollm2_gguf")
def test_the_commands_run(tmp_path: Path) -> None:
    main = "from mlxsteer.cli import main; main()"
    home = str(tmp_path / "huggingface")
    with started("lfs", user="you") as hub:
        env = {"HF_ENDPOINT": hub.url, "HF_HOME": home, "HF_HUB_DISABLE_XET": "1"}
        for command in COMMANDS:
            env |= {"HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0" if HUB.search(command) else "1"}
            said = run("-c", main, *shlex.split(command)[1:], cwd=tmp_path, **env).strip()
            assert said, command
            if command.startswith("mlxsteer vectors push"):
                hub.do("tag", repo="you/sea", tag="v1")
                assert hub.url in said
            elif command.startswith("mlxsteer vectors search"):
                assert "you/sea" in said
    last = shlex.split(COMMANDS[-1])[1:]
    again = run("-c", main, *last, cwd=tmp_path, **env | {"HF_HUB_OFFLINE": "1"})
    assert again.strip() == said  # the Hub is gone by now


@pytest.mark.usefixtures("smollm2_gguf")
def test_the_code_runs() -> None:
    code = next(text for kind, text in BLOCKS if kind == "python")
    assert len(run("-c", code, cwd=ROOT).split()) > 5


def sketch(word: str) -> str:
    """The piece of code in the lists that has a word."""
    return next(text for kind, text in BLOCKS if kind == "py" and word in text)


@pytest.mark.parametrize("same", [True, False])
def test_patching_into_the_same_and_into_another_model(same: bool) -> None:
    """Layer 12, position 7: what comes before is the other run's own, what follows is not."""
    model = tiny(num_hidden_layers=14)
    other = model if same else tiny(num_hidden_layers=14, seed=1)
    clean, corrupted = list(range(5, 15)), [5, 6, 7, 60, *range(9, 15)]
    names: dict[str, Any] = {"forward": forward, "model": model, "other": other}
    names |= {"clean": clean, "corrupted": corrupted}
    exec(sketch("patching("), names)
    plain, patched = forward(other, corrupted), names["logits"]
    assert mx.array_equal(patched[:7], plain[:7])
    assert not mx.allclose(patched[7:], plain[7:], atol=1e-3)


def test_a_prompt_cache_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model, words = tiny(), tokenizer()
    start, rest = [5, 6, 7, 8, 9], [10, 11]
    both = Steering((vector((1, 2), scale=20.0), 1.0), phase="response")
    names = {"model": model, "tokenizer": words, "Steered": Steered, "both": both}
    exec(sketch("reuse("), {**names, "start": start, "rest": rest})
    told = capsys.readouterr().out
    assert told == generate(model, words, [*start, *rest], steering=both, max_tokens=40)
    assert told != generate(model, words, [*start, *rest], max_tokens=40)


def test_no_link_is_dead() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
    for name in re.findall(r"`((?:mlxsteer|bench|tests|vectors|docs)/[\w/.-]*)`", README):
        assert (ROOT / name).exists(), name
