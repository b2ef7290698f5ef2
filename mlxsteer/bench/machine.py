"""What a measurement was made on: chip, memory, system, power and heat, versions, commit.

Everything is read from the system's own tools and is None where they do not say. It knows nothing
of models and writes no name of a user, a host or a folder.
"""

import os
import platform
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..backend import metal, open_blas, total_memory

__all__ = ["machine", "short_name"]

PACKAGES = ("mlx", "mlx-lm", "mlxsteer", "numpy")


def machine() -> dict[str, Any]:
    """Return the record of this machine, now."""
    apple = sys.platform == "darwin"
    return {
        "chip": _chip(),
        "cpu_cores": os.cpu_count(),
        "gpu_cores": _gpu_cores() if apple else None,
        "memory_gb": round(total_memory() / 1e9, 1),
        "system": f"macOS {platform.mac_ver()[0]}" if apple else platform.system(),
        "device": "Metal" if metal() else "CPU",
        "blas": open_blas(),
        "power": _power() if apple else None,
        "thermal": _thermal() if apple else None,
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "commit": _commit(),
    }


def short_name(record: dict[str, Any]) -> str:
    """Return a name for files: `apple-m4-max-40-gpu-64gb`, `amd-epyc-2-cpu-25gb`."""
    cores = f"{record['gpu_cores']} gpu" if record["gpu_cores"] else f"{record['cpu_cores']} cpu"
    text = f"{record['chip']} {cores} {round(record['memory_gb'])}gb"
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _chip() -> str:
    name = mx.device_info().get("device_name", "")
    return str(name) or platform.processor() or platform.machine()


def _said(*command: str) -> str:
    """Return what a command prints, "" where it is not there or fails."""
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout if run.returncode == 0 else ""


def _gpu_cores() -> int | None:
    text = _said("system_profiler", "SPDisplaysDataType", "-json")
    found = re.search(r'"sppci_cores"\s*:\s*"(\d+)"', text)
    return int(found[1]) if found else None


def _power() -> str | None:
    text = _said("pmset", "-g", "batt")
    found = re.search(r"drawing from '([^']+)'", text)
    return found[1] if found else None


def _thermal() -> str | None:
    text = _said("pmset", "-g", "therm")
    found = re.search(r"CPU_Speed_Limit\s*=\s*(\d+)", text)
    if found:
        return f"CPU speed limit {found[1]}%"
    return "no warning" if "No thermal warning" in text else None


def _commit() -> str | None:
    """Return the commit of a checkout, "+" behind it when files differ; None in a wheel."""
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists():
        return None
    commit = _said("git", "-C", str(folder), "rev-parse", "--short=12", "HEAD").strip()
    changed = _said("git", "-C", str(folder), "status", "--porcelain", "--", "mlxsteer")
    return f"{commit}{'+' if changed.strip() else ''}" if commit else None
