"""What a benchmark found: rows, the machine, a verdict; its file, and two of them side by side.

A result is one JSON document of schema version 1:

    {"schema": 1, "machine": {...}, "model": {...}, "settings": {...}, "partial": false,
     "load_seconds": 1.9, "rows": [{"case": "add-1", "base": "off", "kind": "decode", ...}]}

A ratio is the speed of the case over the speed of its base: below 1, the case is slower. It knows
nothing of how the figures were made, and every table and plot is drawn from this alone.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from ..errors import MlxsteerError

__all__ = [
    "SCHEMA",
    "Kind",
    "Results",
    "Row",
    "compared",
    "differences",
    "named",
    "read_results",
]

SCHEMA = 1
WIDTH = 0.02  # of an interval that can decide

Kind = Literal["decode", "prefill"]


def named(kind: Kind, context: int, batch: int, behind: bool) -> str:
    """Return a work in words."""
    return f"{kind} {'behind ' if behind else ''}{context}" + (f" x {batch}" if batch > 1 else "")


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        case: what was measured, base: against what.
        says: the case in words.
        kind, context, batch: the work; tokens of one block in all rows.
        ratio, low, high: of speeds, with its 95% interval.
        rounds: of A B B A.
        seconds, base_seconds: medians of a block.
        tokens: of a block.
        peak_gb, base_peak_gb: the most memory held during a block.
        nodes, base_nodes: graph nodes of one pass: a decode step, or a piece of the prompt.
        host_ms, base_host_ms: time of the host to build the graph of a decode step.
        target: what `low` must reach; None when there is none.
        behind: whether a prefill was of a piece behind the context, not of the whole prompt.
        control: whether the case must come out as slower, or the instrument is blind.
    """

    case: str
    base: str
    says: str
    kind: Kind
    context: int
    batch: int
    ratio: float
    low: float
    high: float
    rounds: int
    seconds: float
    base_seconds: float
    tokens: int
    peak_gb: float
    base_peak_gb: float
    nodes: int | None = None
    base_nodes: int | None = None
    host_ms: float | None = None
    base_host_ms: float | None = None
    target: float | None = None
    behind: bool = False
    control: bool = False

    @property
    def work(self) -> str:
        """The work in words."""
        return named(self.kind, self.context, self.batch, self.behind)

    @property
    def speed(self) -> float:
        """Tokens per second, of all rows together."""
        return self.tokens / self.seconds

    @property
    def base_speed(self) -> float:
        """Tokens per second of the base."""
        return self.tokens / self.base_seconds

    @property
    def extra_nodes(self) -> int | None:
        """Graph nodes that the case has more than its base."""
        if self.nodes is None or self.base_nodes is None:
            return None
        return self.nodes - self.base_nodes

    @property
    def verdict(self) -> str:
        """`pass`, `FAIL`, `open` (too wide, or the target lies within), "" without one."""
        if self.control:
            return "pass" if self.high < 1 else "FAIL"
        if self.case == "idle":
            return "pass" if self.extra_nodes == 0 else "FAIL"
        if self.target is None:
            return ""
        if self.high < self.target:
            return "FAIL"
        narrow = self.high - self.low <= WIDTH
        return "pass" if self.low >= self.target and narrow else "open"


@dataclass
class Results:
    """A run of the benchmark; `partial` until its last row is there."""

    machine: dict[str, Any]
    model: dict[str, Any]
    settings: dict[str, Any]
    load_seconds: float
    rows: list[Row] = field(default_factory=list)
    partial: bool = True

    def to_json(self) -> dict[str, Any]:
        """Return the JSON document."""
        return {"schema": SCHEMA, **asdict(self)}

    def save(self, path: Path) -> None:
        """Write the file, or leave the old one."""
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path)

    def find(self, case: str, kind: str, context: int, batch: int) -> Row | None:
        """Return one row."""
        wanted = (case, kind, context, batch)
        rows = (r for r in self.rows if (r.case, r.kind, r.context, r.batch) == wanted)
        return next(rows, None)


def read_results(path: Path) -> Results:
    """Read a result.

    Raises:
        MlxsteerError: it cannot be read, is none, or is of another schema version.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MlxsteerError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise MlxsteerError(f"{path}: not JSON: give what mlxsteer bench --json wrote") from error
    if not isinstance(document, dict) or "schema" not in document:
        raise MlxsteerError(f"{path}: not a result: give what mlxsteer bench --json wrote")
    if document.pop("schema") != SCHEMA:
        raise MlxsteerError(
            f"{path}: of another schema version than {SCHEMA}; run mlxsteer bench again"
        )
    try:
        rows = [Row(**row) for row in document.pop("rows")]
        return Results(**document, rows=rows)
    except (KeyError, TypeError) as error:
        wanted = ", ".join(f.name for f in fields(Results))
        raise MlxsteerError(f"{path}: damaged; a result has {wanted}") from error


def compared(a: Results, b: Results) -> list[tuple[Row, Row]]:
    """Return the rows that both have, in the order of the first."""
    found = ((row, b.find(row.case, row.kind, row.context, row.batch)) for row in a.rows)
    return [(row, other) for row, other in found if other is not None]


def differences(a: Results, b: Results) -> Sequence[str]:
    """Return in words what sets the conditions of two results apart."""
    pairs = [
        (key, a.machine.get(key), b.machine.get(key))
        for key in ("chip", "gpu_cores", "cpu_cores", "memory_gb", "device", "system", "commit")
    ]
    pairs += [
        (key, a.machine.get("versions", {}).get(key), b.machine.get("versions", {}).get(key))
        for key in ("mlx", "mlx-lm", "mlxsteer")
    ]
    pairs += [
        (key, a.model.get(key), b.model.get(key))
        for key in ("repo", "revision", "quantization", "dtype")
    ]
    return [f"{key} {x} -> {y}" for key, x, y in pairs if x != y]
