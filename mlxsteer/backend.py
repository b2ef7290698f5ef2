"""The machine below MLX: which device, which BLAS, how much memory.

On Apple silicon there is nothing to set. On a Linux CPU two things decide the speed: an OpenBLAS
opened before `mlx.core` is first imported takes the place of the wheel's reference BLAS, which is
about 50 times slower on long prompts; and `mx.compile` needs g++. `announce` says once what is
missing, when it matters.

It knows nothing of models, dtypes of files or devices other than MLX's default one. MLX is imported
inside functions only, so that everything else here works without it. Sizes are bytes.
"""

import ctypes
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Literal

from .errors import MlxsteerError

__all__ = [
    "announce",
    "available_memory",
    "default_dtype",
    "keep_quantized_default",
    "metal",
    "open_blas",
    "peak_memory",
    "require_memory",
    "total_memory",
]

Blas = Literal["opened", "late", "missing", "own"]

_log = logging.getLogger("mlxsteer")


@cache
def open_blas() -> Blas:
    """Open OpenBLAS for MLX to find, once, on Linux.

    "opened"; "late" when MLX came first and keeps the BLAS of its wheel; "missing" when the machine
    has no OpenBLAS; "own" where MLX brings a fast one (macOS).
    """
    if sys.platform != "linux":
        return "own"
    if "mlx.core" in sys.modules:
        return "late"
    for name in ("libopenblas.so.0", "libopenblas.so"):
        try:
            ctypes.CDLL(name, ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return "opened"
    return "missing"


@cache
def announce() -> None:
    """Say, once, what slows this machine down; for whoever is about to run a model."""
    if sys.platform != "linux" or not _on_cpu():
        return
    blas = open_blas()
    if blas == "late":
        _log.warning("slow BLAS: mlx was imported before mlxsteer; import mlxsteer first")
    elif blas == "missing":
        _log.warning("slow BLAS: no libopenblas.so.0 here; apt-get install libopenblas0-pthread")
    if shutil.which("g++") is None:
        _log.warning("mx.compile is off: no g++ here; apt-get install g++")


def _on_cpu() -> bool:
    import mlx.core as mx

    return mx.default_device() == mx.Device(mx.cpu)


def metal() -> bool:
    """Whether models run on an Apple GPU."""
    import mlx.core as mx

    return mx.metal.is_available() and not _on_cpu()


def keep_quantized_default() -> bool:
    """Whether weights stay packed as stored: yes on a GPU; a CPU is faster with dense float32."""
    return not _on_cpu()


def default_dtype() -> str | None:
    """The dtype that weights are loaded in: None (as stored) on a GPU, "float32" on a CPU."""
    return "float32" if _on_cpu() else None


def total_memory() -> int:
    """Memory of the machine, or of the container when that is less."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([total, *(limit for limit, _ in _cgroups())])


def available_memory() -> int:
    """Memory that a new model can take without pushing anything else out."""
    if sys.platform == "darwin":
        import subprocess

        return _vm_stat(subprocess.check_output(["vm_stat"], text=True))
    meminfo = Path("/proc/meminfo").read_text()
    free = int(re.search(r"MemAvailable:\s+(\d+) kB", meminfo)[1]) * 1024  # type: ignore[index]
    return min([free, *(max(limit - used, 0) for limit, used in _cgroups())])


def require_memory(need: int, what: str) -> None:
    """Refuse `what` (as in "smollm2-135m") when it needs more bytes than are available."""
    free = available_memory()
    if need > free:
        raise MlxsteerError(
            f"{what} needs {need / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB of "
            f"{total_memory() / 1e9:.1f} GB are free: close other programs, or take a smaller "
            "model or quantization (mlxsteer models list)"
        )


def peak_memory() -> int:
    """The most that MLX has held at one time in this process."""
    import mlx.core as mx

    return mx.get_peak_memory()


def _vm_stat(text: str) -> int:
    """Free, speculative and inactive memory in the output of macOS's vm_stat."""
    page = int(re.search(r"page size of (\d+) bytes", text)[1])  # type: ignore[index]
    counts = re.findall(r"^Pages (?:free|speculative|inactive):\s+(\d+)\.", text, re.MULTILINE)
    return page * sum(map(int, counts))


def _cgroups(
    own: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> Iterator[tuple[int, int]]:
    """Limit and use of every control group, versions 1 and 2, that this process is in.

    Use is without the file cache, which the kernel gives back.
    """
    if not own.exists():
        return
    for line in own.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, names, cached = root, ("memory.max", "memory.current"), "inactive_file"
        elif controllers == "memory":
            base, cached = root / "memory", "total_inactive_file"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        here = base / path.lstrip("/")
        for group in (here, *here.parents):
            if not group.is_relative_to(base):
                break
            limit, usage, stat = (group / name for name in (*names, "memory.stat"))
            if limit.exists() and usage.exists() and stat.exists() and limit.read_text() != "max\n":
                found = re.search(rf"^{cached} (\d+)$", stat.read_text(), re.MULTILINE)
                yield int(limit.read_text()), int(usage.read_text()) - int(found[1] if found else 0)
