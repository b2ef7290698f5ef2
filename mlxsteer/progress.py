"""How long work tells that it is going on.

A `Progress` is called as `progress(stage, done, total)` and must be cheap; a stage is over when
`done == total`. The library calls it and never draws; `bars` draws rich bars on stderr for the
commands. It knows nothing of what the stages are.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Progress", "bars", "silent"]

Progress = Callable[[str, int, int], None]


def silent(stage: str, done: int, total: int) -> None:
    """Say nothing."""


@contextmanager
def bars() -> Iterator[Progress]:
    """Draw one bar per stage on stderr while the block runs; they are gone when it ends."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(24),  # a full line would be broken by the "^C" that a terminal writes
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    off = not console.is_interactive  # rich would leave an empty line in a log
    with Bars(*columns, console=console, transient=True, disable=off) as shown:
        tasks: dict[str, TaskID] = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = shown.add_task(stage, total=total)
            elif done == 0:
                shown.reset(tasks[stage])  # the same for the next: its time begins anew
            shown.update(tasks[stage], completed=done, total=total)

        yield progress
