"""What is drawn on a terminal, and on nothing else."""

import io
import sys

import pytest
from typed import cells

from mlxsteer.cli.columns import columns
from mlxsteer.progress import bars


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
