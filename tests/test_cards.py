"""The README's table of concepts and every card say what the vector files say; `make docs` writes
them anew.
"""

import re
import shutil
from pathlib import Path

import pytest

from mlxsteer.library import Concept, concept, concepts, read_concept
from mlxsteer.report import markdown_table
from mlxsteer.vector import Vector, read_vector

README = Path(__file__).parents[1] / "README.md"
MODEL = "smollm2-135m"


def block(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- end of {name} -->)", re.DOTALL)


def shipped(found: Concept) -> Vector | None:
    path = found.vector_path(MODEL)
    return None if path is None else read_vector(path)


def layers(vector: Vector) -> str:
    first, last = vector.layers[0], vector.layers[-1]
    assert vector.layers == tuple(range(first, last + 1))
    return f"{first} to {last}"


def table(library: list[Concept]) -> str:
    """Return the README's table."""
    rows = []
    for found in library:
        vector = shipped(found)
        figures = ["", ""]
        if vector is not None:
            assert vector.calibration is not None
            figures = [layers(vector), f"{vector.calibration['factor']:.2f}"]
        name = f"[`{found.name}`](vectors/{found.name}/README.md)"
        rows.append([name, found.positive, found.negative, *figures])
    head = ("concept", "positive", "negative", "layers", "factor on the natural scale")
    return markdown_table(head, rows)


def says(found: Concept) -> str:
    """Return what a card says of the vector beside it."""
    vector = shipped(found)
    if vector is None:
        return (
            f"The library has no vector of it for `{MODEL}` yet: `-s {found.name}=1` extracts one "
            "on the spot.\n"
        )
    assert vector.calibration is not None
    factor, kl = vector.calibration["factor"], vector.calibration["kl"]
    return (
        f"For `{MODEL}`, strength 1 adds {factor:.2f} times the mean difference on layers "
        f"{layers(vector)},\nwhich costs {kl:.2f} nats per token.\n"
    )


def current(path: Path, name: str, text: str, write: bool) -> None:
    """Compare the block `name` of a page with `text`, after writing it if so asked."""
    if write:
        path.write_text(block(name).sub(lambda _: text, path.read_text()))
    found = block(name).search(path.read_text())
    assert found is not None, f"{path} has no block {name}"
    assert found[0] == text, "run make docs"


def test_the_readme_is_current(request: pytest.FixtureRequest) -> None:
    current(README, "concepts", table(concepts()), request.config.getoption("--write-docs"))


@pytest.mark.parametrize("found", concepts(), ids=lambda found: found.name)
def test_a_card_says_which_vector_there_is_or_that_there_is_none(
    found: Concept, request: pytest.FixtureRequest
) -> None:
    card = found.folder / "README.md"
    current(card, MODEL, says(found), request.config.getoption("--write-docs"))


def test_a_page_that_says_something_else_is_noticed(tmp_path: Path) -> None:
    folder = shutil.copytree(concept("terse").folder, tmp_path / "terse")
    card, vector = folder / "README.md", folder / f"{MODEL}.safetensors"
    current(card, MODEL, says(read_concept(folder)), write=False)
    read_vector(vector).replace(calibration={"factor": 0.5, "kl": 1.0}).save(vector)
    with pytest.raises(AssertionError, match="make docs"):
        current(card, MODEL, says(read_concept(folder)), write=False)
    vector.unlink()
    assert "has no vector" in says(read_concept(folder))
    with pytest.raises(AssertionError, match="make docs"):
        current(card, MODEL, says(read_concept(folder)), write=False)
    card.write_text("# terse\n")
    with pytest.raises(AssertionError, match="has no block"):
        current(card, MODEL, says(read_concept(folder)), write=True)
