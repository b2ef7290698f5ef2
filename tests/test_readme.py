"""The README's own commands and code run as they stand."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

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


def run(*words: str, cwd: Path) -> str:
    ended = subprocess.run([sys.executable, *words], cwd=cwd, capture_output=True, text=True)
    assert ended.returncode == 0, f"{words}: {ended.stderr}"
    return ended.stdout


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 5
    assert {kind for kind, _ in BLOCKS} >= {"sh", "python", "text"}


@pytest.mark.usefixtures("smollm2_gguf")
def test_the_commands_run(tmp_path: Path) -> None:
    main = "from mlxsteer.cli import main; main()"
    for command in COMMANDS:
        assert run("-c", main, *shlex.split(command)[1:], cwd=tmp_path).strip(), command


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
