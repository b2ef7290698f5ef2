"""Findings as people read them: Markdown tables and plots.

Plots need matplotlib (the extra `plot`), which is imported only when one is drawn; the same figures
give the same picture. It knows nothing of what the figures mean.
"""

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import MlxsteerError

__all__ = ["COLOURS", "check_drawing", "figure", "markdown_table"]

COLOURS = ("#3366cc", "#cc6633", "#339966", "#996699", "#888888")
_STYLE: dict[Any, Any] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.dpi": 120,
    "font.size": 9,
    "grid.alpha": 0.3,
    "svg.hashsalt": "mlxsteer",
}


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table; bars and line breaks in cells are made harmless."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def _cell(value: object) -> str:
    return " ".join(str(value).replace("|", "\\|").split())


def check_drawing() -> None:
    """Refuse plots where matplotlib is not installed, which costs nothing to ask beforehand.

    Raises:
        MlxsteerError: it is not.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MlxsteerError("plots need matplotlib: pip install 'mlxsteer[plot]'")


@contextmanager
def figure(path: Path, width: float, height: float, axes: int = 1) -> Iterator[Any]:
    """Yield the axes of a plot, one or a list side by side, and write it as PNG.

    Args:
        width, height: in inches.

    Raises:
        MlxsteerError: matplotlib is not installed.
    """
    check_drawing()
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context(_STYLE):
        drawn, made = pyplot.subplots(1, axes, figsize=(width, height), layout="constrained")
        try:
            yield made
            drawn.savefig(path, format="png", metadata={"Software": None})
        finally:
            pyplot.close(drawn)
