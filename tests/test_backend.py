"""The machine: BLAS in both import orders, notes said once, memory."""

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mlxsteer import backend
from mlxsteer.errors import MlxsteerError

linux_blas = pytest.mark.skipif(
    backend.open_blas() != "opened", reason="no OpenBLAS that mlxsteer could open"
)


def run(code: str, **environment: str) -> str:
    """What a fresh interpreter says on stderr."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stderr


def sgemm_from(code: str, folder: Path) -> str:
    """The library of MLX's float32 matrix products, by the dynamic linker's own account."""
    run(code, LD_DEBUG="bindings", LD_DEBUG_OUTPUT=str(folder / "linker"))
    account = next(folder.glob("linker.*")).read_text()
    found = re.search(r"libmlx\S* \[0\] to \S*/(\S+) .*`cblas_sgemm'", account)
    assert found
    return found[1]


@linux_blas
def test_openblas_replaces_the_wheels_blas(tmp_path: Path) -> None:
    assert sgemm_from("import mlxsteer, mlx.core", tmp_path).startswith("libopenblas")


@linux_blas
def test_mlx_before_mlxsteer_keeps_its_own_blas(tmp_path: Path) -> None:
    assert not sgemm_from("import mlx.core, mlxsteer", tmp_path).startswith("libopenblas")


ANNOUNCE = "from mlxsteer import backend; backend.announce(); backend.announce()"


@linux_blas
def test_the_wrong_order_is_said_once() -> None:
    assert run(f"import mlx.core; {ANNOUNCE}").count("import mlxsteer first") == 1


@linux_blas
def test_the_right_order_is_not_worth_a_word() -> None:
    assert "BLAS" not in run(ANNOUNCE)


@linux_blas
def test_importing_says_nothing() -> None:
    assert run("import mlx.core, mlxsteer") == ""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's compiler and BLAS")
def test_what_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(backend, "_on_cpu", lambda: True)
    monkeypatch.setattr(backend, "open_blas", lambda: "missing")
    with caplog.at_level(logging.WARNING, logger="mlxsteer"):
        backend.announce.__wrapped__()
    assert [record.getMessage().split(";")[1] for record in caplog.records] == [
        " apt-get install libopenblas0-pthread",
        " apt-get install g++",
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's compiler and BLAS")
def test_what_a_compiler_makes_of_a_kernel_has_the_bits_of_mlx() -> None:
    """`make setup` tells g++ to make vector loops: one kernel against three of MLX's own."""
    import mlx.core as mx
    from mlx_lm.models.activations import swiglu

    a, b = 4 * mx.random.normal((64, 96)), mx.random.normal((64, 96))
    sigmoid = mx.sigmoid(a)
    mx.eval(sigmoid)
    gated = a * sigmoid
    mx.eval(gated)
    assert mx.array_equal(swiglu(a, b), gated * b)


def test_a_cpu_takes_dense_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    for cpu in (True, False):
        monkeypatch.setattr(backend, "_on_cpu", lambda cpu=cpu: cpu)
        assert backend.default_dtype() == ("float32" if cpu else None)
        assert backend.keep_quantized_default() is not cpu


def test_metal_is_the_default_device_or_nothing() -> None:
    import mlx.core as mx

    before = mx.default_device()
    try:
        mx.set_default_device(mx.Device(mx.cpu))
        assert backend.metal() is False
    finally:
        mx.set_default_device(before)
    assert backend.metal() is mx.metal.is_available()


def test_memory_is_what_the_machine_has() -> None:
    assert 0 < backend.available_memory() <= backend.total_memory()


def test_too_much_memory_is_refused_with_both_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "available_memory", lambda: 2_000_000_000)
    monkeypatch.setattr(backend, "total_memory", lambda: 8_000_000_000)
    backend.require_memory(2_000_000_000, "it")
    with pytest.raises(MlxsteerError, match=r"^it needs 2\.1 GB .* 2\.0 GB of 8\.0 GB .*$"):
        backend.require_memory(2_100_000_000, "it")


def test_peak_memory_grows_with_what_mlx_holds() -> None:
    import mlx.core as mx

    mx.eval(mx.zeros((1024, 1024)))
    assert backend.peak_memory() >= 4 * 1024 * 1024


def test_vm_stat_is_read_as_macos_prints_it() -> None:
    text = """Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                                5000.
Pages active:                            300000.
Pages inactive:                          200000.
Pages speculative:                         1000.
Pages throttled:                              0.
Pages wired down:                        150000.
Pages purgeable:                           7000.
"""
    assert backend._vm_stat(text) == 206_000 * 16384


@pytest.mark.parametrize(
    ("own", "folder", "limit", "usage", "stat"),
    [
        ("0::/box/me", "box", "memory.max", "memory.current", "inactive_file"),
        (
            "3:cpu:/\n2:memory:/box/me",
            "memory/box",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    ],
    ids=["v2", "v1"],
)
def test_the_limit_of_any_group_above_counts(
    tmp_path: Path, own: str, folder: str, limit: str, usage: str, stat: str
) -> None:
    (tmp_path / "own").write_text(own + "\n")
    group = tmp_path / "root" / folder
    (group / "me").mkdir(parents=True)
    for place, size in ((group, "1000\n"), (group / "me", "max\n")):
        (place / limit).write_text(size)
        (place / usage).write_text("900\n")
        (place / "memory.stat").write_text(f"anon 7\n{stat} 300\nslab 9\n")
    if "memory.max" not in limit:
        (group / "me" / limit).unlink()
    assert list(backend._cgroups(tmp_path / "own", tmp_path / "root")) == [(1000, 600)]


def test_no_groups_no_limits(tmp_path: Path) -> None:
    assert list(backend._cgroups(tmp_path / "absent")) == []
