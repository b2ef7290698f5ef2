"""Transfers that break, servers out of order, names that are taken."""

import base64
import contextlib
import logging
from pathlib import Path
from typing import Any

import pytest
from hub_place import SENDING, made, pushed, salty
from huggingface_hub import HfApi, constants
from minihub import Server
from tiny import ref

from mlxsteer.bundle import collect, of_concept, of_vector
from mlxsteer.catalog import search
from mlxsteer.errors import MlxsteerError, UsageError
from mlxsteer.hub_errors import one_line
from mlxsteer.interop import load_vector
from mlxsteer.publish import push
from mlxsteer.vector import read_vector

pytestmark = SENDING


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
