"""What the scripts of this folder share: their arguments, and the file that they write."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlxsteer.bench.machine import machine
from mlxsteer.bench.measure import Patience, Ratio
from mlxsteer.vector_file import whole_file


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Return what reads MODEL, --seconds and --json."""
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("model", nargs="?", default="smollm2-135m")
    made.add_argument("--seconds", type=float, default=60.0, help="the most for a comparison")
    made.add_argument("--json", type=Path, help="write the figures and the machine here")
    return made


def arguments(doc: str | None) -> argparse.Namespace:
    """Read MODEL, --seconds and --json."""
    found = parser(doc).parse_args()
    found.patience = Patience(seconds=found.seconds)
    return found


def save(path: Path | None, model: Any, figures: dict[str, Any]) -> None:
    """Write figures with what they were measured on."""
    if path is None:
        return
    shown = {k: asdict(v) if isinstance(v, Ratio) else v for k, v in figures.items()}
    record = {"machine": machine(), "model": asdict(model.source), "figures": shown}
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")
