"""`vectors push`, `pull` and `search` in processes of their own, and other clients."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hub_place import SENDING, made, salty, shared
from minihub import TOKEN, Server, started

from mlxsteer.bundle import collect, of_concept, of_vector
from mlxsteer.cli import main
from mlxsteer.library import concepts
from mlxsteer.publish import push

pytestmark = SENDING


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
