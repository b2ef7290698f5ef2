"""Vectors on the Hub: the real client against a server in another process."""

import base64
import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile import vectors as hostile
from huggingface_hub import HfApi, constants
from minihub import TOKEN, Server, started
from tiny import ref, tiny, vector

from mlxsteer.bundle import collect, of_concept, of_vector
from mlxsteer.catalog import search
from mlxsteer.cli import main
from mlxsteer.cli.sources import library_at, named_vectors, steering_of
from mlxsteer.errors import MlxsteerError, UsageError
from mlxsteer.generate import forward
from mlxsteer.hub import Shared, open_repo
from mlxsteer.hub_errors import one_line
from mlxsteer.hub_ref import HubRef
from mlxsteer.interop import load_vector, write_control_vector
from mlxsteer.library import Concept, concepts, known_models, read_concept
from mlxsteer.model_ref import base_name
from mlxsteer.progress import silent
from mlxsteer.prompts import pairs_sha256
from mlxsteer.publish import push
from mlxsteer.steering import Steering
from mlxsteer.vector import Vector, read_vector

HOSTILE = Path(hostile.__file__).parent
MODEL = ref()

# huggingface_hub's own, when it sends a large file without hf_xet
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(scope="module")
def process() -> Iterator[Server]:
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


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    """What the command line does to the log ends with the test."""
    log = logging.getLogger("mlxsteer")
    before = log.handlers[:], log.level, log.propagate
    yield
    log.handlers[:], log.propagate = before[0], before[2]
    log.setLevel(before[1])


@pytest.fixture
def server(
    process: Server, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Server:
    process.do("set", repos={}, blobs={}, collections={}, fail=[], yaml={}, cut="", log=[])
    connect(monkeypatch, process, tmp_path_factory.mktemp("cache"))
    return process


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


# Names


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("alice/salty", ("alice/salty", None, None)),
        ("alice/salty@v1", ("alice/salty", "v1", None)),
        ("alice/salty:pirate", ("alice/salty", None, "pirate")),
        ("alice/salty@refs/pr/1:a/b c.gguf", ("alice/salty", "refs/pr/1", "a/b c.gguf")),
        ("alice/x.gguf@main", ("alice/x.gguf", "main", None)),
        ("pirate", None),
        ("vectors/pirate", None),  # a folder that is here
        ("vectors/pirat", None),  # below a folder that is here
        ("alice/x.safetensors", None),
        ("a/b/c", None),
        ("./a/b", None),
        ("../b", None),
        ("alice/salty@", None),
        ("alice/salty:", None),
        ("", None),
    ],
)
def test_what_names_a_repository(text: str, parts: tuple[str, ...] | None) -> None:
    found = HubRef.parse(text)
    assert (found and (found.repo, found.revision, found.name)) == parts
    assert found is None or str(found) == text


# There and back


def test_a_concept_comes_back_as_it_went(server: Server, tmp_path: Path) -> None:
    concept = salty(tmp_path / "salty")
    done = pushed(concept)
    files = set(server.do("repo", repo="alice/salty")["files"])
    data = {"README.md", "config.json", "pairs.jsonl", "vector.toml"}
    assert files == {".gitattributes", "tiny.gguf", "tiny.safetensors", *data}
    mine = read_vector(concept.folder / "tiny.safetensors")
    assert load_vector("alice/salty") == mine
    assert load_vector(f"alice/salty@{done.commit}:salty", model=MODEL) == mine
    rows = load_vector("alice/salty:salty").rows()
    plain = load_vector(shared("alice/salty").snapshot.fetch("tiny.gguf")).rows()
    assert all(np.allclose(rows[n], plain[n], rtol=1e-6) for n in rows)


def test_one_commit_and_a_second_push_does_nothing(server: Server, tmp_path: Path) -> None:
    concept = salty(tmp_path / "salty")
    first = pushed(concept)
    told = server.do("repo", repo="alice/salty")
    assert len(told["commits"]) == 2
    server.log()
    again = pushed(concept)
    assert (again.commit, again.changed) == (first.commit, ())
    assert not [line for line in server.log() if line.startswith(("POST", "PUT"))]
    (concept.folder / "words.txt").write_text("brine\n")
    third = pushed(concept)
    assert set(third.changed) == {"README.md", "words.txt"}
    assert len(server.do("repo", repo="alice/salty")["commits"]) == 3


def test_only_what_is_needed_is_fetched_once(server: Server, tmp_path: Path) -> None:
    concepts = [salty(tmp_path / name, name) for name in ("salty", "sweet")]
    push(collect([of_concept(c) for c in concepts], "alice/lib"), "alice/lib")
    server.log()
    assert load_vector("alice/lib:sweet").name == "sweet"
    fetched = [line.split("/resolve/")[1] for line in server.log() if line.startswith("GET /alice")]
    assert [line.partition("/")[2] for line in fetched] == [
        "config.json",
        "sweet/tiny.safetensors",
    ]
    load_vector("alice/lib:sweet")
    assert not [line for line in server.log() if "/resolve/" in line]


@pytest.mark.parametrize("said", [True, False], ids=["offline", "unreachable"])
def test_no_connection_is_needed_afterwards(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bool
) -> None:
    pushed(salty(tmp_path / "salty"))
    server.put("bob/plain", {"x.gguf": control_vector(tmp_path)})
    first = [load_vector(name) for name in ("alice/salty", "bob/plain")]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", said)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    assert [load_vector(name) for name in ("alice/salty", "bob/plain")] == first
    with pytest.raises(
        MlxsteerError, match="cannot be reached and alice/other is not in the cache"
    ):
        load_vector("alice/other")


def test_without_a_connection_no_part_is_taken_for_the_whole(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pushed(salty(tmp_path / "salty"))
    assert load_vector("alice/salty").name == "salty"  # two files of six are here now
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MlxsteerError, match="may not be all of alice/salty: connect, or leave"):
        shared("alice/salty").save(tmp_path / "back")
    assert not (tmp_path / "back").exists()
    said = {record.getMessage() for record in caplog.records if record.name == "mlxsteer"}
    assert "the Hub cannot be reached: what is in the cache is used" in said
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert len(shared("alice/salty").save(tmp_path / "back")) == 7


def test_transfers_tell_how_far_they_are(server: Server, tmp_path: Path) -> None:
    """A push by its files, a pull by its bytes: forwards, to the end, and not of what is here."""
    told: list[tuple[str, int, int]] = []

    def tell(stage: str, done: int, total: int) -> None:
        told.append((stage, done, total))

    long = np.random.default_rng(0).normal(size=(2, 1_200_000)).astype(np.float32)
    wide = ref(repo="tiny/wide", hidden_size=long.shape[1])
    fields = {"license": "CC0-1.0", "method": "m", "pairs_sha256": "0" * 64, "model": wide}
    big = Vector.from_rows("big", {1: long[0], 2: long[1]}, **fields)
    done = push(collect([of_vector(big)], "alice/big"), "alice/big", progress=tell)
    files = len(done.changed)
    assert told[0][0] == "pushing files"
    assert (told[0][1], told[-1]) == (0, ("pushing files", files, files))
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    told.clear()
    assert load_vector("alice/big", progress=tell) == big
    bytes_ = [one for one in told if one[0] == "downloading MB"]
    assert bytes_[-1][1:] == (10, 10)  # 9.6 MB, rounded up; before it came config.json
    large = [done for _, done, total in bytes_ if total == 10]
    assert large == sorted(set(large))
    told.clear()
    assert load_vector("alice/big", progress=tell) == big
    assert told == []


def test_branches_tags_and_commits_are_pins(server: Server, tmp_path: Path) -> None:
    first = salty(tmp_path / "a")
    commit = pushed(first).commit
    HfApi().create_tag("alice/salty", tag="v1")
    second = salty(tmp_path / "b", scales=np.full(2, 3, np.float32))
    later = pushed(second).commit
    mine, newer = (read_vector(c.folder / "tiny.safetensors") for c in (first, second))
    assert mine != newer
    for revision, wanted in (("v1", mine), (commit, mine), ("main", newer), (later, newer)):
        assert load_vector(f"alice/salty@{revision}") == wanted
    with pytest.raises(MlxsteerError, match="no revision 'v2'"):
        load_vector("alice/salty@v2")


def test_a_branch_and_a_pull_request(server: Server, tmp_path: Path) -> None:
    concept = salty(tmp_path / "salty")
    with pytest.raises(MlxsteerError, match="no repository 'alice/salty' is on the Hub"):
        pushed(concept, create_pr=True)
    main = pushed(concept).commit
    (concept.folder / "words.txt").write_text("brine\n")
    asked = pushed(concept, create_pr=True)
    assert asked.pull_request == f"{server.url}/alice/salty/discussions/1"
    told = server.do("repo", repo="alice/salty")
    assert (told["refs"]["main"], told["pulls"]) == (main, 1)
    assert load_vector("alice/salty@refs/pr/1").name == "salty"
    pushed(concept, revision="dev")
    refs = server.do("repo", repo="alice/salty")["refs"]
    assert refs["main"] == main != refs["dev"]
    assert load_vector("alice/salty@dev").name == "salty"


def test_a_library_is_one_repository_and_a_collection(server: Server, tmp_path: Path) -> None:
    concepts = [of_concept(salty(tmp_path / name, name)) for name in ("salty", "sweet")]
    for _ in range(2):
        push(collect(concepts, "alice/lib"), "alice/lib", collection="mlxsteer vectors")
    (found,) = server.do("collections").values()
    assert [item["id"] for item in found["items"]] == ["alice/lib"]
    assert len(server.do("repo", repo="alice/lib")["commits"]) == 2
    with pytest.raises(UsageError, match=r"several concepts, .*alice/lib:salty: salty, sweet"):
        load_vector("alice/lib")
    with pytest.raises(MlxsteerError, match=r"no concept 'swete' \(did you mean sweet\?\)"):
        load_vector("alice/lib:swete")


def test_all_of_a_concept_comes_into_a_folder(server: Server, tmp_path: Path) -> None:
    concept = salty(tmp_path / "salty")
    done = pushed(concept)
    place = tmp_path / "mine"
    shared("alice/salty").save(place)
    source = json.loads((place / "source.json").read_text())
    assert (source["repo"], source["commit"]) == ("alice/salty", done.commit)
    assert read_concept(place).pairs() == concept.pairs()
    again = push(collect([of_concept(read_concept(place))], "alice/salty"), "alice/salty")
    assert again.changed == ()
    with pytest.raises(UsageError, match="not empty: name a new folder"):
        shared("alice/salty").save(place)


def test_a_library_comes_back_whole_and_can_grow(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lib = tmp_path / "lib"
    salty(lib / "salty")

    def share(folder: Path) -> Any:
        bundles = [of_concept(concept) for concept in library_at(str(folder))]
        return push(collect(bundles, "alice/lib", library=True), "alice/lib")

    share(lib)  # of one concept, in a folder from the start
    assert load_vector("alice/lib").name == "salty"
    place = tmp_path / "back"
    open_repo(HubRef("alice/lib"), whole=True).save(place)
    assert {path.name for path in place.iterdir()} == {"salty", "source.json"}
    assert share(place).changed == ()
    sweet = salty(place / "sweet", "sweet")
    bare = salty(place / "umami", "umami")
    (bare.folder / "tiny.safetensors").unlink()
    with caplog.at_level("INFO", "mlxsteer"):
        changed = share(place).changed
    assert "without a vector, left out: umami" in caplog.text
    assert {name.partition("/")[0] for name in changed} == {"README.md", "config.json", "sweet"}
    with pytest.raises(MlxsteerError, match=r"also holds sweet/tiny.safetensors.*with --all"):
        share(lib)
    again = tmp_path / "again"
    open_repo(HubRef("alice/lib"), whole=True).save(again)
    assert sorted(path.name for path in again.iterdir()) == ["salty", "source.json", "sweet"]
    wanted = read_vector(sweet.folder / "tiny.safetensors")
    assert read_vector(again / "sweet" / "tiny.safetensors") == wanted
    one = tmp_path / "one"
    shared("alice/lib:sweet").save(one)
    assert read_concept(one).name == "sweet"


# Steering


def test_a_name_on_the_hub_steers_like_its_file(server: Server, tmp_path: Path) -> None:
    concept = salty(tmp_path / "salty")
    pushed(concept)
    model = tiny()
    model.source = MODEL
    strong = read_vector(concept.folder / "tiny.safetensors")

    def logits(word: str) -> np.ndarray:
        steering = steering_of(named_vectors([word]), model, None, "tiny", silent)
        return np.array(forward(model, [1, 2, 3], steering=steering))

    plain = np.array(forward(model, [1, 2, 3]))
    for strength in (2, -2):
        wanted = np.array(forward(model, [1, 2, 3], steering=Steering((strong, strength))))
        assert np.array_equal(logits(f"alice/salty={strength}"), wanted)
        assert not np.allclose(wanted, plain)
    assert not np.allclose(logits("alice/salty=2"), logits("alice/salty=-2"))
    assert np.array_equal(logits("alice/salty=0"), plain)
    model.source = ref(repo="tiny/elsewhere")
    with pytest.raises(MlxsteerError, match="none for tiny/elsewhere"):
        logits("alice/salty=1")


def test_another_packing_is_a_note(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pushed(salty(tmp_path / "salty"))
    model = tiny()
    model.source = ref(repo="tiny/random-4bit", quantization="4bit-g64")
    named = named_vectors(["alice/salty=1"])
    with caplog.at_level("INFO", "mlxsteer"):
        steering_of(named, model, None, "tiny", silent)
    assert "same model, other packing" in caplog.text
    assert f"tiny.safetensors of commit {open_repo(HubRef('alice/salty')).snapshot.commit}" in (
        caplog.text
    )


# Which vector


def test_the_vector_of_the_model_at_hand(server: Server, tmp_path: Path) -> None:
    concept = salty(tmp_path / "salty")
    sha = pairs_sha256(concept.pairs())
    packed = ref(repo="tiny/random-4bit", quantization="4bit-g64")
    wide = ref(repo="tiny/wider", hidden_size=8)
    made(model=packed, pairs_sha256=sha).save(concept.folder / "tiny-4bit.safetensors")
    rows = {1: np.ones(8), 2: np.ones(8)}
    fields = {"license": "CC0-1.0", "method": "m", "pairs_sha256": sha, "model": wide}
    Vector.from_rows("salty", rows, **fields).save(concept.folder / "wide.safetensors")
    pushed(concept)
    for model in (MODEL, packed, wide):
        assert load_vector("alice/salty", model=model).model == model
    other_packing = ref(repo="tiny/random-8bit", quantization="8bit-g64")
    near = load_vector("alice/salty", model=other_packing)
    near.check(other_packing)
    assert near.model in (MODEL, packed)
    with pytest.raises(MlxsteerError, match=r"none for tiny/elsewhere.*mlxsteer extract"):
        load_vector("alice/salty", model=ref(repo="tiny/elsewhere"))
    with pytest.raises(UsageError, match="say for which model"):
        load_vector("alice/salty")
    assert shared("alice/salty").choose("wide").model == wide
    with pytest.raises(MlxsteerError, match="none for nothing"):
        shared("alice/salty").choose("nothing")


def control_vector(folder: Path) -> bytes:
    path = folder / "control.gguf"
    write_control_vector(made(), path)
    return path.read_bytes()


def test_plain_repositories_of_control_vectors(server: Server, tmp_path: Path) -> None:
    gguf = control_vector(tmp_path)
    files = {"tiny/a__up.gguf": gguf, "tiny/a__down.gguf": gguf, "x.pt": b"\x80\x04."}
    server.put("bob/many", files)
    server.log()
    for name in ("a__up", "a__up.gguf", "tiny/a__up.gguf"):
        assert load_vector(f"bob/many:{name}").method == "control vector of llama"
    assert not [line for line in server.log() if "x.pt" in line]
    with pytest.raises(UsageError, match=r"2 files, say which, .*tiny/a__down.gguf, tiny/a__up"):
        load_vector("bob/many")
    with pytest.raises(MlxsteerError, match="no vector 'a__upp'"):
        load_vector("bob/many:a__upp")
    server.put("bob/pickles", {"x.pt": b"\x80\x04.", "y.bin": b"\x80\x04."})
    with pytest.raises(MlxsteerError, match=r"no vector in .safetensors or .gguf, only 'x.pt'"):
        load_vector("bob/pickles")


# Hostile repositories


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


# Trouble


def test_a_transfer_that_is_cut_leaves_no_half_file(server: Server, tmp_path: Path) -> None:
    done = pushed(salty(tmp_path / "salty"))
    server.do("set", cut="tiny.safetensors")
    with contextlib.suppress(MlxsteerError):  # unless huggingface_hub itself goes on after the cut
        load_vector("alice/salty")
    kept = Path(constants.HF_HUB_CACHE, "models--alice--salty", "snapshots", done.commit)
    for path in kept.glob("*.safetensors"):
        read_vector(path)
    assert load_vector("alice/salty").name == "salty"
    asked = f"GET /alice/salty/resolve/{done.commit}/tiny.safetensors"
    assert server.log().count(asked) == 2  # the one that was cut, and the one that was not


def test_whatever_else_breaks_a_transfer_is_one_line() -> None:
    with (
        pytest.raises(
            MlxsteerError, match=r"the transfer failed: Data processing error; try again"
        ),
        one_line("a/b"),
    ):
        raise RuntimeError("Data processing error\nmore")


def test_private_and_gated_repositories(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    concept = salty(tmp_path / "salty")
    pushed(concept, private=True)
    assert server.do("repo", repo="alice/salty")["private"] is True
    assert load_vector("alice/salty").name == "salty"
    assert pushed(concept, private=True).changed == ()
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    with pytest.raises(MlxsteerError, match=r"'alice/salty' is on the Hub, or it is private"):
        load_vector("alice/salty")
    files = collect([of_concept(concept)], "bob/gated")
    server.put("bob/gated", files, gated=True)
    with pytest.raises(MlxsteerError, match="gated: accept its terms"):
        load_vector("bob/gated")


def test_what_is_public_is_not_taken_for_private(server: Server, tmp_path: Path) -> None:
    concept = salty(tmp_path / "salty")
    pushed(concept)
    with pytest.raises(UsageError, match="there and public"):
        pushed(concept, private=True)


def test_tokens(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    concept = salty(tmp_path / "salty")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    for act in (lambda: pushed(concept), lambda: load_vector("alice/salty"), search):
        with pytest.raises(MlxsteerError, match="the token is not valid: run hf auth login"):
            act()
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(MlxsteerError, match="no token of the Hub: run hf auth login"):
        pushed(concept)
    assert server.do("repo", repo="alice/salty") is None


@pytest.mark.parametrize(
    ("status", "where", "why"),
    [
        (403, "POST .*/commit/", "the token may not do this"),
        (409, "POST .*/commit/", "changed just now"),
        (413, "PUT /lfs", "too large"),
        (507, "POST .*/commit/", "quota"),
        (412, "POST .*/commit/", "changed just now: try again"),
    ],
)
def test_what_the_hub_refuses(
    server: Server, tmp_path: Path, status: int, where: str, why: str
) -> None:
    concept = salty(tmp_path / "salty")
    server.do("set", fail=[[status, where, 99]])
    with pytest.raises(MlxsteerError, match=why) as error:
        pushed(concept)
    assert "\n" not in str(error.value)
    assert server.do("repo", repo="alice/salty")["files"] == [".gitattributes"]
    server.do("set", fail=[])
    assert len(pushed(concept).changed) == 6


def test_a_server_that_is_out_of_order(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    concept = salty(tmp_path / "salty")
    pushed(concept)
    server.do("set", fail=[[503, "GET /api/models/alice/salty/tree", 99]])
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(MlxsteerError, match=r"out of order \(503\): try again later"):
        load_vector("alice/salty")


def test_no_network(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(MlxsteerError, match=r"the connection to the Hub broke|cannot be reached"):
        pushed(salty(tmp_path / "salty"))
    with pytest.raises(MlxsteerError, match="cannot be reached and alice/salty is not in"):
        load_vector("alice/salty")


def test_the_wait_for_a_server_is_one_line(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []

    class Probe(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())

    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "handlers", [Probe()])
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    server.do("set", fail=[[503, "GET /api/models", 2]])
    with caplog.at_level("INFO", "mlxsteer"):
        assert search() == []
    assert [r.getMessage() for r in caplog.records if r.name == "mlxsteer"] == [
        "the Hub does not answer: trying again"
    ]
    assert told == []
    server.do("set", fail=[[503, "GET /api/models", 2]])
    list(HfApi().list_models())
    assert len(told) > 2  # what huggingface_hub says without us
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MlxsteerError, match="cannot be reached for the search: unset HF_HUB_OFF"):
        search()


def test_a_name_that_is_taken(server: Server, tmp_path: Path) -> None:
    concept = salty(tmp_path / "salty")
    server.put("alice/model", {"model.safetensors": b"x", "config.json": b"{}"})
    server.put("alice/other", {"notes.txt": b"x"})
    for repo in ("alice/model", "alice/other"):
        with pytest.raises(MlxsteerError, match=f"{repo} is taken"):
            pushed(concept, repo)
    with pytest.raises(MlxsteerError, match="the token may not do this"):
        pushed(concept, "bob/salty")
    with pytest.raises(UsageError, match="write owner/name"):
        pushed(concept, "salty")


def test_what_others_commit_meanwhile_is_not_overwritten(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    concept = salty(tmp_path / "salty")
    pushed(concept)
    (concept.folder / "words.txt").write_text("brine\n")

    def meanwhile(repo: str, *rest: Any) -> None:
        server.put(repo, {"words.txt": b"theirs"}, keep=True)

    monkeypatch.setattr("mlxsteer.publish._check_taken", meanwhile)
    with pytest.raises(MlxsteerError, match="changed just now: try again"):
        pushed(concept)
    theirs = base64.b64encode(b"theirs").decode()
    assert server.do("file", repo="alice/salty", file="words.txt") == theirs


def test_vectors_on_the_hub_are_not_forgotten(server: Server, tmp_path: Path) -> None:
    one = of_vector(made(model=ref(repo="a/one")))
    two = of_vector(made(model=ref(repo="a/two")))
    push(collect([one], "alice/salty"), "alice/salty")
    with pytest.raises(MlxsteerError, match=r"also holds one.safetensors.*vectors pull"):
        push(collect([two], "alice/salty"), "alice/salty")


def test_another_concept_does_not_take_a_name_that_is_in_use(
    server: Server, tmp_path: Path
) -> None:
    commit = pushed(salty(tmp_path / "salty")).commit
    with pytest.raises(MlxsteerError, match=r"has 'salty' in tiny.safetensors: choose another"):
        pushed(salty(tmp_path / "sweet", "sweet"))
    with pytest.raises(MlxsteerError, match=r"has 'salty' in tiny.safetensors: choose another"):
        pushed(salty(tmp_path / "sour", "sour"), revision="sour")
    held = server.do("repo", repo="alice/salty")
    assert held["refs"] == {"main": commit}  # nor is a branch left of it


def test_a_card_that_the_hub_refuses(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    concept = salty(tmp_path / "salty")
    server.do("set", yaml={"errors": ['"base_model" is not valid', "nor is more"]})
    with pytest.raises(MlxsteerError, match=r'refused the card .*: - "base_model" is not') as error:
        pushed(concept)
    assert "\n" not in str(error.value)
    assert server.do("repo", repo="alice/salty")["files"] == [".gitattributes"]
    server.do("set", yaml={"warnings": ["a tag is strange"]})
    with caplog.at_level("INFO", "mlxsteer"):
        assert len(pushed(concept).changed) == 6
    assert "a tag is strange" in caplog.text


def test_a_collection_that_fails_is_told_apart(server: Server, tmp_path: Path) -> None:
    files = collect([of_concept(salty(tmp_path / "salty"))], "alice/salty")
    server.do("set", fail=[[403, "POST /api/collections", 99]])
    why = "the files are on the Hub, their collection is not: .*the token may not do this"
    with pytest.raises(MlxsteerError, match=why):
        push(files, "alice/salty", collection="mlxsteer vectors")
    assert load_vector("alice/salty").name == "salty"
    server.do("set", fail=[])
    assert push(files, "alice/salty", collection="mlxsteer vectors").changed == ()
    (found,) = server.do("collections").values()
    assert [item["id"] for item in found["items"]] == ["alice/salty"]


# What goes


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"license": ""}, "no licence: say which with --license"),
        ({"model": None}, r"does not say where it is from \(the model\)"),
        ({"method": "", "pairs_sha256": ""}, r"\(the method, the pairs\)"),
        ({"model": ref(repo="my-model")}, "no Hub id: name its base model with --base-model"),
        ({"model": ref(repo="")}, "no Hub id"),
        ({"name": "Not a name"}, "no concept's name"),
    ],
)
def test_nothing_goes_without_licence_and_provenance(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(MlxsteerError, match=why):
        of_vector(made(**fields))
    assert of_vector(made()).part.license == "CC0-1.0"


def test_a_known_model_is_named_as_people_load_it_and_its_original_too() -> None:
    packed, original = "mlx-community/Qwen3-0.6B-4bit", "Qwen/Qwen3-0.6B"
    part = of_vector(made(model=ref(repo=packed))).part
    (one,) = part.made
    assert (one.base_model, one.model_name, part.base_models) == (packed, "qwen3-0.6b", (original,))
    part = of_vector(made(model=ref(repo="a/Qwen3-0.6B")), base_models=["b/c"]).part
    assert (part.made[0].model_name, part.base_models) == ("qwen3-0.6b", ("b/c", original))
    part = of_vector(made(model=ref(repo="a/other"))).part
    assert (part.made[0].model_name, part.base_models) == ("a/other", ())
    for model in known_models():
        assert base_name(model.hub[0].repo).endswith(base_name(model.original))


def test_words_of_the_command_complete_a_vector() -> None:
    whole = of_vector(made(license="", model=ref(repo="mine")), "MIT", ["a/base"])
    assert (whole.part.license, whole.part.made[0].base_model) == ("MIT", "a/base")
    with pytest.raises(UsageError, match=r"has the licence CC0-1.0"):
        of_vector(made(), "MIT")


def test_a_folder_that_does_not_belong_together(tmp_path: Path) -> None:
    concept = salty(tmp_path / "a", pairs_sha256="1" * 64)
    with pytest.raises(MlxsteerError, match=r"a/tiny.safetensors was made from other pairs"):
        of_concept(concept)
    with pytest.raises(MlxsteerError, match=r"has the licence 'MIT', its concept 'CC0-1.0'"):
        of_concept(salty(tmp_path / "b", license="MIT"))
    concept = salty(tmp_path / "c")
    (concept.folder / "x.pt").write_bytes(b"")
    with pytest.raises(MlxsteerError, match=r"holds 'x.pt', no part of a concept: move it away"):
        of_concept(concept)
    (concept.folder / "x.pt").unlink()
    (concept.folder / ".DS_Store").write_bytes(b"")
    assert ".DS_Store" not in of_concept(concept).files
    (concept.folder / "tiny.safetensors").unlink()
    with pytest.raises(MlxsteerError, match="no vector to push"):
        of_concept(concept)


PATHS = ["/Users/zoe/x", "see\n/Users/zoe/x", "file:///home/zoe/x", "/home/zoe/pairs.jsonl"]
PATHS += ["C:\\Users\\zoe", "C:/Users/zoe", "/private/tmp/x", "/tmp/x", "/root/x", "HOME/x"]


@pytest.mark.parametrize("path", PATHS)
def test_no_local_path_leaks(tmp_path: Path, path: str) -> None:
    concept = salty(tmp_path / "salty")
    assert collect([of_concept(concept)], "a/b")
    path = path.replace("HOME", os.environ["HOME"])
    (concept.folder / "words.txt").write_text(f"brine\n{path}\n")
    with pytest.raises(MlxsteerError, match=r"words.txt holds a local path.*take it out"):
        collect([of_concept(concept)], "a/b")
    leaking = made(evidence={"from": path})
    with pytest.raises(MlxsteerError, match="holds a local path"):
        collect([of_vector(leaking)], "a/b")


def test_an_address_is_no_local_path(tmp_path: Path) -> None:
    concept = salty(tmp_path / "salty")
    (concept.folder / "words.txt").write_text("https://x.org/home/page\nhome/x and /homely/x\n")
    assert collect([of_concept(concept)], "a/b")


def test_a_vector_that_llama_cpp_cannot_hold_goes_without_gguf(tmp_path: Path) -> None:
    assert "random.gguf" in of_vector(made()).files
    assert "random.gguf" not in of_vector(made(op="project")).files


# Search


def test_search_by_name_tag_and_base_model(server: Server, tmp_path: Path) -> None:
    pushed(salty(tmp_path / "salty"))
    packed = made("sweet", model=ref(repo="other/base-4bit"))
    push(collect([of_vector(packed)], "alice/sweet"), "alice/sweet")
    gguf = control_vector(tmp_path)
    card = b"---\ntags:\n- control-vector\n---\n"
    files = {"README.md": card, "Base-8bit/x__up.gguf": gguf, "Base-8bit/x__down.gguf": gguf}
    server.put("bob/plain", files, downloads=7)
    server.put("bob/model", {"README.md": b"---\ntags:\n- mlx\n---\n", "m.gguf": gguf})
    server.put("carol/some-control-vectors", {"up.gguf": gguf})  # says so in its name only
    server.put("carol/control-vector-data", {"pairs.jsonl": b"{}"})
    found = {one.repo: one for one in search()}
    assert list(found) == ["alice/salty", "alice/sweet", "bob/plain", "carol/some-control-vectors"]
    assert found["bob/plain"].downloads == 7
    assert not found["bob/plain"].ours
    assert len(found["bob/plain"].files) == 2
    assert found["alice/salty"].base_models == (MODEL.repo,)
    assert [one.repo for one in search("sweet")] == ["alice/sweet"]
    assert [one.repo for one in search(model="third/Base")] == ["alice/sweet", "bob/plain"]
    assert [one.repo for one in search(model=MODEL.repo)] == ["alice/salty"]
    assert [one.repo for one in search("x__UP")] == ["bob/plain"]
    assert search("nothing") == []
    assert search(model="other/model") == []


# The commands, as other processes


def command(
    server: Server, home: Path, *words: str, **more: str
) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "HF_ENDPOINT": server.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    env |= {"HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN, **more}
    return subprocess.run(
        [sys.executable, "-m", "mlxsteer", *words],
        env=env,
        capture_output=True,
        text=True,
    )


def test_the_commands(server: Server, tmp_path: Path) -> None:
    concept = salty(tmp_path / "salty")
    home = tmp_path / "hf"
    words = ("vectors", "push", str(concept.folder), "--repo", "alice/salty", "--json")
    first = command(server, home, *words)
    assert first.returncode == 0, first.stderr
    told = json.loads(first.stdout)
    assert len(told["changed"]) == 6
    assert told["url"] == f"{server.url}/alice/salty"
    pulled = command(server, home, "vectors", "pull", "alice/salty", "--json", HF_TOKEN="")
    assert json.loads(pulled.stdout)["commit"] == told["commit"]
    other = command(server, home, "vectors", "pull", "alice/salty", "-m", "llama-3.2-1b")
    assert (other.returncode, other.stdout) == (1, "")
    assert "has vectors for tiny/random, none for llama-3.2-1b" in other.stderr
    same = command(server, home, "vectors", "pull", "alice/salty", "-m", "a/Random-8bit")
    assert same.returncode == 0, same.stderr
    shown = command(server, home, "vectors", "show", "alice/salty", HF_HUB_OFFLINE="1")
    assert "talks of salt" in shown.stdout or "salty" in shown.stdout
    found = command(server, home, "vectors", "search", "salt", "--json")
    assert [one["repo"] for one in json.loads(found.stdout)] == ["alice/salty"]
    push(collect([of_vector(made(), base_models=["a/base"])], "alice/two"), "alice/two")
    found = command(server, home, "vectors", "search", "two")
    assert re.search(r"^alice/two +mlxsteer +tiny/random \+1 +1 +0 ", found.stdout, re.MULTILINE)
    failed = command(server, home, "vectors", "pull", "alice/none")
    assert (failed.returncode, len(failed.stderr.splitlines())) == (1, 1)
    assert failed.stderr.startswith("error: no repository of vectors 'alice/none'")


def test_the_shipped_library_can_be_shared(server: Server, tmp_path: Path) -> None:
    words = ("vectors", "push", "--all", "--repo", "alice/vectors", "--private")
    run = command(server, tmp_path, *words)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == f"{server.url}/alice/vectors"
    whole = [c for c in concepts() if list(c.folder.glob("*.safetensors"))]
    assert {entry.name for entry in shared("alice/vectors:sea").entries} == {"sea"}
    held = server.do("repo", repo="alice/vectors")
    assert {name.partition("/")[0] for name in held["files"] if "/" in name} == {
        concept.name for concept in whole
    }
    assert (held["private"], len(held["commits"])) == (True, 2)
    assert [slug for slug in server.do("collections")] == ["alice/mlxsteer-vectors-0"]


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (["push", "--repo", "alice/x"], 2, "name one thing to push"),
        (["push", "FOLDER", "--all", "--repo", "alice/x"], 2, "name one thing to push"),
        (["push", "PARENT", "--repo", "alice/x"], 2, "holds a folder per concept: name one"),
        (["push", "EMPTY", "--all", "--repo", "alice/x"], 2, "holds no concepts: --all takes"),
        (["push", "BARES", "--all", "--repo", "alice/x"], 1, "no concept has a vector to push"),
        (["push", "FOLDER", "--repo", "x"], 2, "'x' is no Hub id"),
        (["push", "FOLDER", "--repo", "alice/x", "--license", "MIT"], 2, "is in its vector.toml"),
        (["push", "FOLDER", "--repo", "alice/x", "--base-model", "x"], 2, "'x' is no Hub id"),
        (["push", "FOLDER", "--repo", "alice/x", "--base-model", "a/b"], 1, "no model 'a/b' is on"),
        (["push", "BARE", "--repo", "alice/x"], 1, "salty has no vector to push"),
        (["push", "none", "--repo", "alice/x"], 1, "no concept and no folder"),
        (["pull", "pirate"], 2, "'pirate' is no repository"),
        (["pull", "eve/none"], 1, "no repository of vectors 'eve/none' is on the Hub"),
    ],
)
def test_wrong_words(
    server: Server,
    tmp_path: Path,
    words: list[str],
    code: int,
    why: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    salty(tmp_path / "salty")
    (tmp_path / "empty").mkdir()
    for made_of_it in salty(tmp_path / "bares" / "bare").folder.glob("*.safetensors"):
        made_of_it.unlink()
    places = {"FOLDER": tmp_path / "salty", "BARE": tmp_path / "bares" / "bare"}
    places |= {"PARENT": tmp_path, "EMPTY": tmp_path / "empty", "BARES": tmp_path / "bares"}
    words = [str(places.get(word, word)) for word in words]
    with pytest.raises(SystemExit) as left:
        main(["vectors", *words])
    out, err = capsys.readouterr()
    assert (left.value.code, out, len(err.splitlines())) == (code, "", 1)
    assert why in err


XET = """
import sys
from pathlib import Path
from mlxsteer.bundle import collect, of_concept
from mlxsteer.interop import load_vector
from mlxsteer.library import read_concept
from mlxsteer.publish import push
from mlxsteer.vector import read_vector

folder = Path(sys.argv[1])
files = collect([of_concept(read_concept(folder))], "alice/salty")
assert len(push(files, "alice/salty").changed) == 6
assert push(files, "alice/salty").changed == ()
assert load_vector("alice/salty") == read_vector(folder / "tiny.safetensors")
"""


def test_xet_is_how_large_files_really_go(tmp_path: Path) -> None:
    pytest.importorskip("hf_xet")
    concept = salty(tmp_path / "salty")
    (tmp_path / "xet").mkdir()
    with started("xet", str(tmp_path / "xet")) as server:
        env = {**os.environ, "HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf")}
        env |= {"HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "0"}
        words = [sys.executable, "-c", XET, str(concept.folder)]
        run = subprocess.run(words, env=env, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        assert server.do("xet", repo="alice/salty") == ["tiny.gguf", "tiny.safetensors"]


NODE = """
import { listFiles, downloadFile } from "@huggingface/hub";
const hubUrl = process.argv[2], repo = "alice/salty";
for await (const file of listFiles({ repo, hubUrl, recursive: true })) {
  const blob = await downloadFile({ repo, hubUrl, path: file.path });
  const bytes = Buffer.from(await blob.arrayBuffer());
  console.log(JSON.stringify([file.path, bytes.toString("base64")]));
}
"""


@pytest.mark.slow
def test_another_implementation_reads_what_we_pushed(server: Server, tmp_path: Path) -> None:
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("there is no node")
    install = ["npm", "install", "--no-fund", "--no-audit", "--prefix", str(tmp_path)]
    if subprocess.run([*install, "@huggingface/hub@2"], capture_output=True).returncode:
        pytest.skip("@huggingface/hub cannot be had from npm")
    files = collect([of_concept(salty(tmp_path / "salty"))], "alice/salty")
    push(files, "alice/salty")
    (tmp_path / "read.mjs").write_text(NODE)
    words = ["node", str(tmp_path / "read.mjs"), server.url]
    run = subprocess.run(words, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = dict(json.loads(line) for line in run.stdout.splitlines())
    found.pop(".gitattributes")
    assert {name: base64.b64decode(data) for name, data in found.items()} == files
