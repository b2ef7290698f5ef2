"""The best cell is the surest one whose text holds together."""

import pytest

from mlxsteer.grid import Cell, best, ranked, spelled
from mlxsteer.stats import Interval


def cell(layer: int, low: float, mean: float, coherent: bool | None = True) -> Cell:
    effect = Interval(mean, low, 2 * mean - low, 0.01, 0.0)
    return Cell("resid_post", "mean_diff", (layer,), 1.0, 1.0, 0.5, (), effect, None, coherent)


def test_the_best_is_the_surest_that_holds_together() -> None:
    sure, large, broken = cell(1, 0.5, 0.6), cell(2, 0.1, 0.9), cell(3, 0.8, 1.0, False)
    unread, failed = cell(4, 0.2, 0.3, None), Cell("mlp_out", "pca", (5,), 1.0, error="no")
    cells = [failed, large, broken, unread, sure]
    assert ranked(cells) == [broken, sure, unread, large]
    assert best(cells) == sure
    assert best([failed, unread, large]) == unread
    assert best([failed, broken]) is None


@pytest.mark.parametrize(
    ("layers", "text"),
    [((4,), "4"), ((4, 5), "4-5"), (range(10, 20), "10-19"), ((3, 5, 6, 7, 9), "3,5-7,9")],
)
def test_layers_are_spelled_as_they_are_read(layers: tuple[int, ...], text: str) -> None:
    from mlxsteer.cli.options import parse_layers

    assert spelled(layers) == text
    assert parse_layers(text) == list(layers)
