"""Repositories that lie, are damaged or want to act: refused in one line, nothing left behind."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile import vectors as hostile
from hub_place import MODEL, SENDING, control_vector, made, pushed, salty, shared
from minihub import Server
from tiny import tiny

from mlxsteer.bundle import collect, of_concept
from mlxsteer.cli import main
from mlxsteer.cli.sources import named_vectors, steering_of
from mlxsteer.errors import MlxsteerError
from mlxsteer.hub import Shared
from mlxsteer.interop import load_vector, write_control_vector
from mlxsteer.library import Concept
from mlxsteer.progress import silent
from mlxsteer.vector import Vector

HOSTILE = Path(hostile.__file__).parent
pytestmark = SENDING


def test_a_change_behind_a_pin_is_refused_and_leaves_nothing(
    server: Server, tmp_path: Path
) -> None:
    done = pushed(salty(tmp_path / "salty"))
    other = tmp_path / "other.safetensors"
    made(positive="else").save(other)
    coded = base64.b64encode(other.read_bytes()).decode()
    name = f"alice/salty@{done.commit}"
    good = server.do("file", repo="alice/salty", file="tiny.safetensors")
    for rehash, why in ((False, "is not the file of commit"), (True, "config.json says")):
        words = {"repo": "alice/salty", "file": "tiny.safetensors", "rehash": rehash}
        server.do("tamper", data=coded, **words)
        with pytest.raises(MlxsteerError, match=why):
            load_vector(name)
        with pytest.raises(MlxsteerError, match=why):
            shared(name).save(tmp_path / "none")
        assert {path.name for path in tmp_path.iterdir()} == {"other.safetensors", "salty"}
    server.do("tamper", repo="alice/salty", file="tiny.safetensors", data=good, rehash=True)
    assert load_vector(name).name == "salty"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"file": "../../etc/x.safetensors"}, "no vector's name"),
        ({"file": "/etc/x.safetensors"}, "no vector's name"),
        ({"file": "a/../x.safetensors"}, "no vector's name"),
        ({"file": "x.pt"}, "no vector's name"),
        ({"file": 3}, "without name, file and sha256"),
        ({"file": "gone.safetensors"}, "has no file 'gone.safetensors'"),
        ({"sha256": "0" * 64}, "not what its config.json says"),
        ({"sha256": "0"}, "64 hex digits"),
        ({"model": None}, "model is None"),
        ({"model": {"repo": "x"}}, "its fields are"),
    ],
)
def test_a_config_that_lies(
    server: Server, tmp_path: Path, change: dict[str, Any], why: str
) -> None:
    files = collect([of_concept(salty(tmp_path / "salty"))], "eve/salty")
    config = json.loads(files["config.json"])
    config["vectors"][0] |= change
    server.put("eve/salty", {**files, "config.json": json.dumps(config).encode()})
    with pytest.raises(MlxsteerError, match=why) as error:
        load_vector("eve/salty")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b'{"mlxsteer": 2}', "of version 2, this mlxsteer reads 1: update"),
        (b'{"mlxsteer": 1, "vectors": []}', "lists no vectors"),
        (b'{"mlxsteer": 1, "vectors": [3]}', "without name"),
        (b'{"mlxsteer": 1, "mlxsteer": 1}', "twice"),
        (b"[" * 100_000, "not JSON"),
        (b"{" + b" " * (1 << 22) + b"}", "no vector is as large"),
    ],
)
def test_a_config_that_is_none(server: Server, raw: bytes, why: str) -> None:
    server.put("eve/salty", {"config.json": raw})
    with pytest.raises(MlxsteerError, match=why):
        load_vector("eve/salty")


def test_names_of_strangers_do_not_act_on_a_terminal(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = collect([of_concept(salty(tmp_path / "salty"))], "eve/salty")
    config = json.loads(files["config.json"])
    config["vectors"][0]["name"] = "\x1b[31mred"
    server.put("eve/salty", {**files, "config.json": json.dumps(config).encode()})
    with pytest.raises(SystemExit):
        main(["vectors", "pull", "eve/salty:x"])
    err = capsys.readouterr().err
    assert "has no concept 'x' (there are:  [31mred)" in err
    assert "\x1b" not in err


@pytest.mark.parametrize(
    "name",
    [p.name for p in sorted(HOSTILE.glob("vector_*.safetensors"))],
)
def test_damaged_vectors(server: Server, name: str) -> None:
    server.put("eve/bad", {"x.safetensors": (HOSTILE / name).read_bytes()})
    with pytest.raises(MlxsteerError) as error:
        load_vector("eve/bad:x")
    assert "\n" not in str(error.value)


def test_names_out_of_the_folder_are_not_fetched(server: Server, tmp_path: Path) -> None:
    gguf = control_vector(tmp_path)
    server.put("eve/paths", {"../x.gguf": gguf, "a/../../y.gguf": gguf, "/z.gguf": gguf})
    with pytest.raises(MlxsteerError, match=r"no vector in .safetensors or .gguf"):
        load_vector("eve/paths")
    with pytest.raises(MlxsteerError, match="it is refused"):
        shared_of(server, tmp_path).snapshot.fetch("../x.gguf")


def test_a_file_that_is_of_another_model_than_it_was_said_to_be(
    server: Server, tmp_path: Path
) -> None:
    model = tiny()
    model.source = MODEL
    concept = salty(tmp_path / "salty")
    wide = Vector.from_rows("salty", {1: np.ones(8)})
    write_control_vector(wide, tmp_path / "wide.gguf", model_hint="llama")
    server.put("eve/wide", {"wide.gguf": (tmp_path / "wide.gguf").read_bytes()})
    server.put("eve/lie", {**collect([of_concept(concept)], "eve/lie"), **lying(concept, wide)})
    for name in ("eve/wide=1", "eve/lie=1"):
        named = named_vectors([name])
        with pytest.raises(MlxsteerError, match="has width 8, tiny/random has 64") as error:
            steering_of(named, model, None, "tiny", silent)
        assert "\n" not in str(error.value)
    server.put("eve/fine", collect([of_concept(concept)], "eve/fine"))
    assert steering_of(named_vectors(["eve/fine=1"]), model, None, "tiny", silent).terms


def lying(concept: Concept, held: Vector) -> dict[str, bytes]:
    """Our files for a concept, with another vector under its name and its right hash."""
    held.save(concept.folder.with_name("held.safetensors"))
    raw = concept.folder.with_name("held.safetensors").read_bytes()
    config = json.loads(collect([of_concept(concept)], "a/b")["config.json"])
    config["vectors"][0]["sha256"] = hashlib.sha256(raw).hexdigest()
    return {"config.json": json.dumps(config).encode(), "tiny.safetensors": raw}


def test_pickles_beside_our_files_stay_where_they_are(server: Server, tmp_path: Path) -> None:
    files = collect([of_concept(salty(tmp_path / "salty"))], "eve/salty")
    server.put("eve/salty", {**files, "x.pt": b"\x80\x04.", "tiny.pkl": b"\x80\x04."})
    server.log()
    assert load_vector("eve/salty").name == "salty"
    shared("eve/salty").save(tmp_path / "back")
    held = {path.name for path in (tmp_path / "back").iterdir()}
    assert held == {*files, "source.json"}
    assert not [line for line in server.log() if line.endswith((".pt", ".pkl"))]


def shared_of(server: Server, tmp_path: Path) -> Shared:
    pushed(salty(tmp_path / "fine"), "alice/fine")
    return shared("alice/fine")


def test_a_model_is_not_fetched_for_a_vector(server: Server, tmp_path: Path) -> None:
    server.put("bob/model", {"model.gguf": control_vector(tmp_path)})
    found = shared("bob/model").snapshot
    server.log()
    with pytest.raises(MlxsteerError, match="no vector is as large"):
        found.fetch("model.gguf", most=100)
    assert not [line for line in server.log() if "/resolve/" in line]
