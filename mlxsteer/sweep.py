"""Where and how to steer: bands of layers, sites, methods and costs against each other.

Both sides of a concept are read once, for all layers and sites. Every place and way gives a vector,
which is brought to each cost in nats by search on the same neutral text, and then read on the dev
split of the concept's completions: at equal cost the vector that moves them more is better, as long
as its text holds together. The test split is not read, so the evidence for what was chosen stays
evidence. `choice` is the small sweep that `extract` does by itself.

It knows nothing of files or of the terminal.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import mlx.nn as nn

from .calibrate import BUDGET
from .capture import check_places
from .choice import SPLIT, bands
from .contrast import Contrast
from .errors import MlxsteerError, UsageError
from .extract import model_ref
from .grid import Cell, Sweep
from .library import Concept
from .methods import check_method
from .neutral import Neutral
from .progress import Progress, silent
from .prompts import pairs_sha256
from .reading import Read, usual_read
from .trials import Trials, check
from .vector import Vector

__all__ = ["FULL", "QUICK", "Size", "each_layer", "sweep"]


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        prompts: of the dev split, at most; `tokens`: of a written answer.
        texts: neutral ones behind every cost.
    """

    prompts: int = 12
    tokens: int = 24
    texts: int = 8


FULL = Size()
QUICK = Size(4, 12, 4)


def each_layer(n_layers: int) -> list[tuple[int, ...]]:
    """Return every layer alone."""
    return [(layer,) for layer in range(n_layers)]


def sweep(
    model: nn.Module,
    tokenizer: Any,
    concept: Concept,
    *,
    layers: Sequence[Sequence[int]] | None = None,
    sites: Sequence[str] = ("resid_post",),
    methods: Sequence[str] = ("mean_diff",),
    budgets: Sequence[float] = (BUDGET,),
    read: Read | None = None,
    neutral: Neutral | None = None,
    size: Size = FULL,
    progress: Progress = silent,
) -> Sweep:
    """Return what every combination does at every cost.

    Args:
        layers: bands of layers; None takes the candidates of `choice`.
        budgets: mean KL per response token, nats; the default is what strength 1 of a
            calibrated vector costs.
        read: as `extract` has it.
        neutral: text to measure costs on; `size` says how much of it.

    Raises:
        MlxsteerError: a concept without recipe or dev completions; nothing that can be measured.
        UsageError: a site, layer, method or cost that does not exist.
    """
    recipe, completions = check(concept, SPLIT)
    places = bands(len(model.layers)) if layers is None else [tuple(sorted(set(b))) for b in layers]
    places, sites, methods = _once(places), _once(sites), _once(methods)
    budgets = _once(budgets)
    for what, values in (("layer", places), ("site", sites), ("method", methods)):
        if not values or () in values:
            raise UsageError(f"no {what} is named: give one or more")
    if not budgets or not all(math.isfinite(budget) and budget > 0 for budget in budgets):
        raise UsageError(f"costs {list(budgets)}: use numbers of nats above 0, such as 0.5")
    for method in methods:
        check_method(method)
    union = sorted({layer for place in places for layer in place})
    check_places(model, sites, union)

    text = neutral or Neutral.kept(model, tokenizer, progress=progress)
    text = text.some(size.texts)
    pairs, completions = concept.pairs(), completions[: size.prompts]
    contrast = Contrast(model, tokenizer, pairs, read, sites=sites, layers=union, progress=progress)
    firsts = [place[0] for place in places]
    trials = Trials(model, tokenizer, completions, recipe, text, firsts, size.tokens)
    found: list[tuple[Cell, Vector | None]] = []
    ways = [(site, method, place) for site in sites for method in methods for place in places]
    for i, (site, method, place) in enumerate(ways):
        progress("bringing cells to equal KL", i, len(ways))
        try:
            rows = contrast.rows(method, site, place, progress=progress)
        except MlxsteerError as error:
            cells = [Cell(site, method, place, budget, error=str(error)) for budget in budgets]
            found += [(cell, None) for cell in cells]
            continue
        vector = Vector.from_rows(concept.name, dict(zip(place, rows, strict=True)), site=site)
        found += [(cell, vector) for cell in trials.cells(vector, method, budgets)]
    progress("bringing cells to equal KL", len(ways), len(ways))
    tried = [(cell, v) for cell, v in found if v is not None and not cell.error]
    if not tried:
        raise MlxsteerError(f"no cell of {concept.name} can be measured: {found[0][0].error}")
    judged = iter(trials.read_text([c for c, _ in tried], [v for _, v in tried], progress=progress))
    return Sweep(
        concept=concept.name,
        sentence=concept.sign,
        model=model_ref(model).repo or model_ref(model).model_type,
        split=SPLIT,
        prompts=tuple(one.prompt for one in completions),
        baseline=trials.baseline,
        cells=tuple(cell if cell.error else next(judged) for cell, _ in found),
        settings={
            **asdict(size),
            "read": usual_read(pairs) if read is None else read,
            "pairs_sha256": pairs_sha256(pairs),
            "neutral_sha256": text.sha256,
        },
    )


def _once(values: Sequence[Any]) -> list[Any]:
    """Return values in their order, each once."""
    return list(dict.fromkeys(values))
