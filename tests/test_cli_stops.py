"""What nobody foresees, and what the user breaks off."""

import errno
import io
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typed import EXTRACT, GENERATE, PROMPT, SHORT, STRONG, Cli, interrupt, refused


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
