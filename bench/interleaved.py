"""Two ways of doing the same work, timed in turn in one process.

Machines drift and are shared, so a lone figure means nothing: the two sides alternate A B B A, and
what is reported is the ratio of their medians with a bootstrap interval over the rounds.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Ratio:
    """Time of B over time of A: above 1, A is the faster.

    Attributes:
        ratio: of medians.
        low: lower end of its bootstrap 95% interval.
        high: upper end.
        a: median seconds of A.
        b: median seconds of B.
    """

    ratio: float
    low: float
    high: float
    a: float
    b: float


def interleaved(a: Callable[[], object], b: Callable[[], object], rounds: int) -> Ratio:
    """Run A B B A `rounds` times after one warm-up of each."""
    a()
    b()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for side in (0, 1, 1, 0):
            start = time.perf_counter()
            (a, b)[side]()
            times[side].append(time.perf_counter() - start)
    seconds = np.array(times)
    draws = np.random.default_rng(0).integers(0, 2 * rounds, (2000, 2 * rounds))
    ratios = np.median(seconds[1][draws], axis=1) / np.median(seconds[0][draws], axis=1)
    low, high = np.quantile(ratios, (0.025, 0.975))
    medians = np.median(seconds, axis=1)
    ratio = medians[1] / medians[0]
    return Ratio(float(ratio), float(low), float(high), float(medians[0]), float(medians[1]))


def arguments(doc: str | None, rounds: int) -> argparse.Namespace:
    """Read MODEL, --rounds and --json."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--json", type=Path, help="write the figures and the machine here")
    return parser.parse_args()


def save(path: Path | None, model: Any, figures: dict[str, Any]) -> None:
    """Write figures with what they were measured on."""
    if path is None:
        return
    shown = {k: asdict(v) if isinstance(v, Ratio) else v for k, v in figures.items()}
    record = {
        "machine": machine(),
        "model": asdict(model.source),
        "versions": {name: version(name) for name in ("mlx", "mlx-lm", "mlxsteer", "numpy")},
        "figures": shown,
    }
    path.write_text(json.dumps(record, indent=2) + "\n")


def machine() -> dict[str, Any]:
    """Return processor, cores and system."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = (line.partition(":") for line in info.read_text().splitlines())
        name = next((v.strip() for k, _, v in lines if k.strip() == "model name"), name)
    return {"processor": name, "cores": os.cpu_count(), "system": platform.system()}
