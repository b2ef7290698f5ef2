"""A hub in another process, the real client set to talk to it, and something to be pushed."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from minihub import TOKEN, Server, started
from tiny import ref, vector

from mlxsteer.bundle import collect, of_concept
from mlxsteer.hub import Shared, open_repo
from mlxsteer.hub_ref import HubRef
from mlxsteer.interop import write_control_vector
from mlxsteer.library import Concept, read_concept
from mlxsteer.prompts import pairs_sha256
from mlxsteer.publish import push
from mlxsteer.vector import Vector

MODEL = ref()

# huggingface_hub's own, when it sends a large file without hf_xet
SENDING = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(scope="session")
def hub_process() -> Iterator[Server]:
    with started("lfs") as server:
        yield server


def connect(monkeypatch: pytest.MonkeyPatch, server: Server, cache: Path) -> None:
    """Make huggingface_hub talk to this server, with an empty cache."""
    place = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", place)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)


@pytest.fixture
def logging_as_before() -> Iterator[None]:
    """What the command line does to the log ends with the test."""
    log = logging.getLogger("mlxsteer")
    before = log.handlers[:], log.level, log.propagate
    yield
    log.handlers[:], log.propagate = before[0], before[2]
    log.setLevel(before[1])


@pytest.fixture
def server(
    hub_process: Server,
    logging_as_before: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> Server:
    """A hub with nothing on it, and huggingface_hub talking to it."""
    hub_process.do("set", repos={}, blobs={}, collections={}, fail=[], yaml={}, cut="", log=[])
    connect(monkeypatch, hub_process, tmp_path_factory.mktemp("cache"))
    return hub_process


def made(name: str = "salty", **fields: Any) -> Vector:
    """A vector with a licence and an origin on the Hub."""
    more: dict[str, Any] = {"license": "CC0-1.0", "method": "mean_diff", "n_pairs": 2}
    more |= {"pairs_sha256": "0" * 64, "token": "last prompt token", "model": MODEL}
    return vector(name=name).replace(**{**more, **fields})


def salty(folder: Path, name: str = "salty", **fields: Any) -> Concept:
    """A concept with one vector, in a folder."""
    folder.mkdir(parents=True)
    (folder / "vector.toml").write_text(
        f'name = "{name}"\npositive = "talks of salt"\nnegative = "talks plainly"\n'
        'sign = "Positive is more."\nlicense = "CC0-1.0"\npairs = "pairs.jsonl"\n'
    )
    pairs = [{"positive": f"salt {i}", "negative": f"sugar {i}"} for i in range(2)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    concept = read_concept(folder)
    sha = pairs_sha256(concept.pairs())
    made(name, **{"pairs_sha256": sha, **fields}).save(folder / "tiny.safetensors")
    return concept


def shared(text: str) -> Shared:
    ref = HubRef.parse(text)
    assert ref is not None
    return open_repo(ref)


def pushed(concept: Concept, repo: str = "alice/salty", **how: Any) -> Any:
    return push(collect([of_concept(concept)], repo), repo, **how)


def control_vector(folder: Path) -> bytes:
    path = folder / "control.gguf"
    write_control_vector(made(), path)
    return path.read_bytes()
