"""Vectors on the Hub, there and back: the real client against a server in another process."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_place import MODEL, SENDING, control_vector, made, pushed, salty, shared
from huggingface_hub import HfApi, constants
from minihub import Server
from tiny import ref, tiny

from mlxsteer.bundle import collect, of_concept, of_vector
from mlxsteer.catalog import search
from mlxsteer.cli.sources import library_at, named_vectors, steering_of
from mlxsteer.errors import MlxsteerError, UsageError
from mlxsteer.generate import forward
from mlxsteer.hub import open_repo
from mlxsteer.hub_ref import HubRef
from mlxsteer.interop import load_vector
from mlxsteer.library import read_concept
from mlxsteer.progress import silent
from mlxsteer.prompts import pairs_sha256
from mlxsteer.publish import push
from mlxsteer.steering import Steering
from mlxsteer.vector import Vector, read_vector

pytestmark = SENDING


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
