"""The shape of the package: imports go down, modules stay small, importing it costs nothing."""

import ast
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import mlxsteer

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mlxsteer"
MODULES = sorted(PACKAGE.rglob("*.py"))

# A module imports modules of the lines above its own only; `arch`, `cli` and `interop` are one noun
# each. The package's own face (__init__) may be imported by nothing below it, its version excepted.
RANKS = [
    "errors hub_ref progress",
    "backend coherence hub_errors report stats tables values",
    "anatomy claims edits evidence grid metrics model_ref prompts rules taps view",
    "algebra completions counting prompt_file vector_file",
    "vector",
    "measured",
    "arch card compare gguf library patch steering",
    "capability definition gguf_configs plan record",
    "prefix selftest state",
    "adopt gguf_families gguf_tensors runtime thinking",
    "download folder gguf_model gguf_tokenizer prompt_cache",
    "snapshot",
    "hub",
    "interop",
    "bundle catalog publish",
    "loading",
    "capture generate",
    "forced methods neutral reading",
    "contrast detection meter scoring",
    "answers nulls",
    "safe trials",
    "calibrate",
    "choice",
    "extract",
    "bench build evaluate sweep",
    "cli",
    "__init__ __main__",
]
RANK = {name: rank for rank, names in enumerate(RANKS) for name in names.split()}


def imported(tree: ast.AST, package: list[str]) -> Iterator[str]:
    """Dotted names that a module of `package` imports, TYPE_CHECKING blocks aside."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base += (node.module or "").split(".") if node.module else []
            yield from (".".join([*base, alias.name]) for alias in node.names)
        yield from imported(node, package)


def upward(package: Path) -> list[str]:
    """Every import of the package by itself that does not go down, as "from -> to"."""
    found = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        noun = parts[1]
        for name in imported(ast.parse(path.read_text()), list(parts[:-1])):
            top, *rest = name.split(".")
            if top == "mlxsteer" and rest != ["__version__"]:
                target = rest[0] if rest and rest[0] in RANK else "__init__"
                if target != noun and RANK[target] >= RANK.get(noun, 0):
                    found.append(f"{noun} -> {target}")
    return found


def test_every_module_has_a_rank() -> None:
    nouns = {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in MODULES}
    assert nouns - RANK.keys() == set()


def test_imports_go_down() -> None:
    assert upward(PACKAGE) == []


@pytest.mark.parametrize(
    ("where", "line", "found"),
    [
        ("vector", "from mlxsteer.loading import load", ["vector -> loading"]),
        ("taps", "from .edits import add", ["taps -> edits"]),
        ("vector", "def f():\n    import mlxsteer.loading", ["vector -> loading"]),
        ("vector", "from . import loading", ["vector -> loading"]),
        ("vector", "from mlxsteer import Steering", ["vector -> __init__"]),
        ("vector", "from mlxsteer import __version__", []),
        ("vector", "if TYPE_CHECKING:\n    from .loading import load", []),
        ("vector", "from .errors import UsageError\nimport numpy", []),
        ("arch/llama", "from ..runtime import Steered", ["arch -> runtime"]),
        ("arch/llama", "from ..taps import Tap\nfrom .shared import Attention", []),
        ("arch/__init__", "from .llama import Model\nfrom .. import loading", ["arch -> loading"]),
    ],
)
def test_upward_imports_are_found(tmp_path: Path, where: str, line: str, found: list[str]) -> None:
    path = tmp_path / "mlxsteer" / f"{where}.py"
    path.parent.mkdir(parents=True)
    path.write_text(line)
    assert upward(tmp_path / "mlxsteer") == found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_is_one_small_noun(path: Path) -> None:
    source = path.read_text()
    tree = ast.parse(source)
    assert ast.get_docstring(tree)
    assert len(source.splitlines()) <= 350
    names = next(
        ast.literal_eval(node.value or node)
        for node in tree.body
        if (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__")
        or (isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "__all__")
    )
    # CONSTANTS, Classes, functions, as ruff sorts them
    assert names == sorted(names, key=lambda n: (not n.isupper(), not n[0].isupper(), n))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_what_a_module_promises_is_there(path: Path) -> None:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    import_module(name)
    module = sys.modules[name]
    assert [public for public in module.__all__ if not hasattr(module, public)] == []


HEAVY = {"matplotlib", "mlx", "mlx_lm", "tokenizers", "transformers"}


@pytest.mark.parametrize(
    ("names", "heavy", "found"),
    [
        ("mlxsteer", HEAVY | {"numpy"}, []),
        ("mlxsteer.cli", HEAVY, []),
        ("mlxsteer, mlx.core, numpy", HEAVY | {"numpy"}, ["mlx", "numpy"]),
    ],
)
def test_importing_costs_nothing(names: str, heavy: set[str], found: list[str]) -> None:
    code = f"import sys, {names}; print(*{{name.split('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert sorted(heavy & set(run.stdout.split())) == found


def test_public_names_are_listed_and_no_others() -> None:
    assert set(mlxsteer.__all__) <= set(dir(mlxsteer))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mlxsteer.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_a_function_is_not_hidden_by_the_module_of_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = ModuleType("mlxsteer.generate")
    vars(module)["generate"] = "the function"
    monkeypatch.setattr(mlxsteer, "generate", module)  # what importing the module does
    assert vars(mlxsteer)["generate"] == "the function"
    monkeypatch.setattr(mlxsteer, "backend", module)
    assert vars(mlxsteer)["backend"] is module


def test_the_wheel_carries_the_data_and_nothing_else(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    names = [Path(name) for name in zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()]
    carried = {name.relative_to("mlxsteer/_data") for name in names if "_data" in name.parts}
    suffixes = {".json", ".jsonl", ".md", ".png", ".safetensors", ".toml", ".txt"}
    data = {
        path.relative_to(ROOT)
        for folder in ("models", "vectors")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in suffixes
    }
    assert data
    assert carried == data
    code = {path.relative_to(ROOT) for path in MODULES} | {Path("mlxsteer/py.typed")}
    assert {
        name for name in names if name.parts[0] == "mlxsteer" and "_data" not in name.parts
    } == code
