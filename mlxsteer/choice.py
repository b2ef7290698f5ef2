"""Which layers: the band whose vector does the most at the cost of strength 1, on the dev split.

Candidates are places relative to the depth of a model, the middle third among them. Every one is
brought to equal KL on a part of the neutral text and read on the concept's dev completions; they
are taken in the order of the lower bound of their effect, as long as it is above 0, and the first
whose answers hold together is chosen. Where there is none, the one whose answers loop least is, and
a warning says so. Answers are read at strength 1 and on either side of it: a dozen alone are too
few, one of them that loops by chance would decide. The test split is not read. All of it goes into
the vector's evidence.

It knows nothing of how directions are found.
"""

import dataclasses
import hashlib
import logging
from collections.abc import Callable
from typing import Any

import mlx.nn as nn

from .calibrate import BUDGET
from .errors import MlxsteerError
from .grid import Cell, ranked, spelled
from .library import Concept
from .neutral import Neutral
from .progress import Progress, silent
from .trials import Trials, check
from .values import canonical
from .vector import Vector

__all__ = ["SPLIT", "bands", "can_choose", "choose", "settings"]

SPLIT = "dev"
TEXTS = 4  # neutral texts behind the cost of a candidate
PROMPTS = 12  # dev prompts, at most
STRENGTHS = (0.75, 1.0, 1.25)  # at which they are answered
TWELFTHS = ((2, 6), (3, 9), (4, 8), (6, 8), (6, 10), (8, 12))  # of the depth: from, to

log = logging.getLogger("mlxsteer")


def bands(n_layers: int) -> list[tuple[int, ...]]:
    """Return the candidates in a model of so many layers: thirds from early to late, a half in the
    middle, and a narrow one behind it. The middle third is `extract.default_layers`.
    """
    found = []
    for start, stop in TWELFTHS:
        first = start * n_layers // 12
        found.append(tuple(range(first, max(stop * n_layers // 12, first + 1))))
    return sorted(dict.fromkeys(found))


def can_choose(concept: Concept) -> bool:
    """Return whether a concept has what layers are chosen by."""
    try:
        check(concept, SPLIT)
    except MlxsteerError:
        return False
    return True


def settings(concept: Concept, n_layers: int, text: Neutral) -> dict[str, Any]:
    """Return what decides, besides the directions, which layers are chosen, as plain JSON."""
    recipe, completions = check(concept, SPLIT)
    judged = [dataclasses.asdict(one) for one in completions[:PROMPTS]]
    said = canonical([judged, recipe.positive, recipe.place])
    return {
        "split": SPLIT,
        "prompts": len(judged),
        "strengths": list(STRENGTHS),
        "completions_sha256": hashlib.sha256(said.encode()).hexdigest(),
        "budget": BUDGET,
        "text_sha256": text.some(TEXTS).sha256,
        "bands": [spelled(band) for band in bands(n_layers)],
    }


def choose(
    model: nn.Module,
    tokenizer: Any,
    concept: Concept,
    vector_of: Callable[[tuple[int, ...]], Vector],
    text: Neutral,
    *,
    progress: Progress = silent,
) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Return the best band for a concept, and what was measured, as plain JSON.

    Args:
        vector_of: makes the vector of a band, of natural scale, which adds.
        text: all of the neutral text.

    Raises:
        MlxsteerError: a concept without recipe or dev completions; no band can be measured.
    """
    recipe, completions = check(concept, SPLIT)
    candidates, stage = bands(len(model.layers)), "choosing layers"
    progress(stage, 0, len(candidates) + 1)
    firsts = [band[0] for band in candidates]
    trials = Trials(model, tokenizer, completions[:PROMPTS], recipe, text.some(TEXTS), firsts)
    cells: list[Cell] = []
    for i, band in enumerate(candidates):
        progress(stage, i, len(candidates) + 1)
        try:
            vector = vector_of(band)
        except MlxsteerError as error:
            cells.append(Cell("", "", band, BUDGET, error=str(error)))
        else:
            cells += trials.cells(vector, vector.method, [BUDGET])
    order = ranked(cells)
    if not order:
        raise MlxsteerError(
            f"no band of layers of {concept.name} can be measured: {cells[0].error}"
        )
    progress(stage, len(candidates), len(candidates) + 1)
    read: list[Cell] = []
    for cell in order:
        if cell.effect is None or not cell.effect.above:
            break  # text that holds together is no merit of a vector that does nothing
        read += trials.read_text([cell], [vector_of(cell.layers)], strengths=STRENGTHS)
        cells[cells.index(cell)] = read[-1]
        if read[-1].coherent:
            break
    chosen = min(read, key=_broken, default=order[0])
    progress(stage, len(candidates) + 1, len(candidates) + 1)
    if chosen.effect is not None and not chosen.effect.above:
        log.warning(
            "%s: no band of layers moves its completions surely; layers %s do the most (%+.2f "
            "nats per token)",
            concept.name,
            spelled(chosen.layers),
            chosen.effect.mean,
        )
    elif not chosen.coherent:
        log.warning(
            "%s: with no band of layers that moves its completions the text holds together",
            concept.name,
        )
    record = settings(concept, len(model.layers), text)
    return chosen.layers, {**record, "candidates": [_told(cell) for cell in cells]}


def _broken(cell: Cell) -> tuple[bool, float]:
    assert cell.coherence is not None
    return not cell.coherent, cell.coherence.loop_rate


def _told(cell: Cell) -> dict[str, Any]:
    """Return a candidate for the record."""
    told: dict[str, Any] = {"layers": spelled(cell.layers)}
    if cell.effect is None or cell.kl is None:
        return {**told, "error": cell.error}
    told |= {"kl": round(cell.kl, 4), "effect": round(cell.effect.mean, 4)}
    told |= {"low": round(cell.effect.low, 4), "high": round(cell.effect.high, 4)}
    loops = None if cell.coherence is None else round(cell.coherence.loop_rate, 4)
    return {**told, "coherent": cell.coherent, "loops": loops}
