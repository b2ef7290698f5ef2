"""The README's own commands and code run as they stand."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from minihub import TOKEN, started

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.S)
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
                hub.do("tag", repo="you/pirate", tag="v1")
                assert hub.url in said
            elif command.startswith("mlxsteer vectors search"):
                assert "you/pirate" in said
    last = shlex.split(COMMANDS[-1])[1:]
    again = run("-c", main, *last, cwd=tmp_path, **env | {"HF_HUB_OFFLINE": "1"})
    assert again.strip() == said  # the Hub is gone by now


@pytest.mark.usefixtures("smollm2_gguf")
def test_the_code_runs() -> None:
    code = next(text for kind, text in BLOCKS if kind == "python")
    assert len(run("-c", code, cwd=ROOT).split()) > 5


def test_no_link_is_dead() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
    for name in re.findall(r"`((?:mlxsteer|bench|tests|vectors|docs)/[\w/.-]*)`", README):
        assert (ROOT / name).exists(), name
