"""Texts side by side: live on a terminal, once at the end elsewhere. It only draws."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

__all__ = ["columns"]

PAUSE = 0.06  # seconds between two pictures
FRAME = 5  # lines of a table that hold no text, and the cursor's
WIDTH = 100  # of a table that does not go to a terminal


@contextmanager
def columns(titles: Sequence[str]) -> Iterator[Callable[..., None]]:
    """Yield `show(column, more_text, dim=False)`; what was shown stays, also after Ctrl-C.

    While text comes, the last lines that fit on the screen are shown; in the end all of it.
    """
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else WIDTH)
    room = console.width - 3  # beside it, the "^C" of a terminal fits into the last line
    texts = [Text() for _ in titles]
    live = Live(console=console, auto_refresh=False, vertical_overflow="crop")
    drawn = 0.0

    def table(lines: int | None = None) -> Table:
        grid = Table(width=room)
        inside = max((room - 1) // len(titles) - 3, 1)
        for title in titles:
            header = Text(title, no_wrap=True, overflow="ellipsis")
            grid.add_column(header, ratio=1, vertical="top")
        wrapped = []
        for text in texts:
            shown = text.copy()
            shown.rstrip()
            wrapped.append(shown.wrap(console, inside))
        grid.add_row(*(Text("\n").join(list(w)[-lines:] if lines else w) for w in wrapped))
        return grid

    def show(column: int, more: str, dim: bool = False) -> None:
        nonlocal drawn
        texts[column].append(more if texts[column] else more.lstrip(), "dim" if dim else None)
        if console.is_terminal and time.monotonic() - drawn > PAUSE:
            live.start()
            live.update(table(max(console.height - FRAME, 1)), refresh=True)
            drawn = time.monotonic()

    try:
        yield show
    finally:
        if any(texts) and console.is_terminal:
            live.start()
            live.update(table())
            live.stop()
        elif any(texts):
            console.print(table())
