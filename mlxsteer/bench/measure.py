"""Two ways of doing the same work, timed in turn in one process, and what no noise touches.

Machines drift and are shared, so a lone figure means nothing. The two sides alternate A B B A in
short blocks, and what is reported is the ratio of their medians with a bootstrap 95% interval over
the rounds. Rounds are added until the interval is narrow enough, or time is up: the rule looks at
the width only, never at the value. `nodes` counts the operations of a graph instead. It knows
nothing of models and steering.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

__all__ = ["Block", "Patience", "Ratio", "host_seconds", "interleaved", "nodes"]

Call = Callable[[], object]

DRAWS = 2000  # of the bootstrap
WARM_UP = 2  # blocks of each side that are not counted
LONG = 10.0  # seconds of a pair of blocks, of which one is warm-up enough
BUILDS = 21  # graphs built to time the host


@dataclass(frozen=True)
class Ratio:
    """Speed of A over speed of B: below 1, A is the slower.

    Attributes:
        ratio: of the medians, seconds of B over seconds of A.
        low: lower end of its bootstrap 95% interval.
        high: upper end.
        seconds: median of a block of A.
        base_seconds: median of a block of B.
        rounds: how often A B B A was run.
    """

    ratio: float
    low: float
    high: float
    seconds: float
    base_seconds: float
    rounds: int

    @property
    def width(self) -> float:
        """Width of the interval."""
        return self.high - self.low


@dataclass(frozen=True)
class Block:
    """A piece of work, and what takes it back afterwards, outside the clock."""

    run: Call
    undo: Call = tuple


@dataclass(frozen=True)
class Patience:
    """When enough rounds were run.

    Attributes:
        width: of the interval, at which to stop.
        seconds: after which to stop all the same.
        rounds: before the first look at the width.
        least: rounds that are run in any case.
    """

    width: float = 0.02
    seconds: float = 60.0
    rounds: int = 25
    least: int = 3


def interleaved(a: Block, b: Block, patience: Patience = Patience()) -> Ratio:
    """Run A B B A until the interval is narrow enough, after a warm-up of each."""
    for _ in range(WARM_UP):
        if _timed(a) + _timed(b) > LONG:
            break
    began = time.perf_counter()
    times: list[tuple[float, float, float, float]] = []
    ask = patience.rounds
    while True:
        times.append((_timed(a), _timed(b), _timed(b), _timed(a)))
        late = time.perf_counter() - began > patience.seconds
        if len(times) >= (patience.least if late else ask):
            found = _ratio(np.array(times))
            if late or found.width <= patience.width:
                return found
            ask = len(times) + max(len(times) // 5, 1)


def _timed(block: Block) -> float:
    start = time.perf_counter()
    block.run()
    seconds = time.perf_counter() - start
    block.undo()
    return seconds


def _ratio(times: np.ndarray) -> Ratio:
    """Return the ratio of medians of rounds `[n, 4]`, whole rounds drawn again."""
    a, b = times[:, [0, 3]], times[:, [1, 2]]
    drawn = np.random.default_rng(0).integers(0, len(times), (DRAWS, len(times)))
    ratios = np.median(b[drawn], axis=(1, 2)) / np.median(a[drawn], axis=(1, 2))
    low, high = np.quantile(ratios, (0.025, 0.975))
    seconds, base = float(np.median(a)), float(np.median(b))
    return Ratio(base / seconds, float(low), float(high), seconds, base, len(times))


def nodes(*outputs: mx.array) -> int:
    """Return the number of operations of an unevaluated graph."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.dot"
        mx.export_to_dot(str(path), *outputs)
        return path.read_text().count("shape=rectangle")


def host_seconds(build: Callable[[], mx.array], undo: Call) -> float:
    """Return the median seconds that the host takes to build a graph, which is run untimed."""
    found = []
    for _ in range(BUILDS):
        start = time.perf_counter()
        made = build()
        found.append(time.perf_counter() - start)
        mx.eval(made)
        undo()
    return statistics.median(found)
