"""`eval` and `sweep` as they are typed."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from typed import Cli, refused

from mlxsteer.vector import Vector, read_vector


def test_a_vector_is_judged(cli: Cli, place: Path, tmp_path: Path) -> None:
    path = place / "nautical" / "v.safetensors"
    read_vector(place / "strong.safetensors").replace(name="v").save(path)
    for name in ("e.json", "e.md", "e.png"):
        (tmp_path / name).unlink(missing_ok=True)
    out = ("--json", tmp_path / "e.json", "--markdown", tmp_path / "e.md")
    ran = cli("eval", path, "--quick", *out, "--plot", tmp_path / "e.png")
    assert (ran.code, ran.err) == (0, [])
    assert ran.out == (tmp_path / "e.md").read_text()
    assert ran.out.startswith("## v on ")
    assert (tmp_path / "e.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((tmp_path / "e.json").read_text())
    assert (record["schema"], record["concept"], record["split"]) == (1, "nautical", "test")
    assert record["vector_sha256"] == read_vector(path).content_sha256
    assert "The vector is not calibrated" in record["remarks"][0]
    assert any("not calibrated" in note for note in ran.notes)
    again = cli("eval", "strong.safetensors", "--quick", "--concept", "nautical")
    assert again.out == ran.out.replace("## v on", "## strong on").replace(
        " v FAILS", " strong FAILS"
    ).replace("\nv FAILS", "\nstrong FAILS")
    path.unlink()


def test_a_concept_is_made_and_judged(cli: Cli) -> None:
    ran = cli("eval", "nautical", "--quick")
    assert ran.code == 0
    assert "extracting it" in ran.notes[0]
    assert ran.out.startswith("## nautical on ")


def test_vectors_of_the_folders_beside_it_are_nulls(cli: Cli, place: Path) -> None:
    library = place / "library"
    for name in ("nautical", "harbour", "island"):
        shutil.copytree(place / "nautical", library / name)
        out = library / name / "tiny.safetensors"
        assert cli("extract", "nautical", "--name", name, "-o", out).code == 0
    foreign = library / "island" / "tiny.safetensors"
    read_vector(foreign).replace(model=None).save(foreign)  # nobody knows of which model
    out = place / "library.json"
    assert cli("eval", library / "nautical", "--quick", "--json", out).code == 0
    record = json.loads(out.read_text())
    assert [null["name"] for null in record["nulls"] if null["kind"] == "other"] == ["harbour"]
    assert "Nulls of other concepts: 1, the nearest of 1 at hand." in record["remarks"]
    out.unlink()
    shutil.rmtree(library)


def test_what_cannot_be_judged(cli: Cli, place: Path) -> None:
    Vector.from_rows("faint", {1: 1e-7 * np.ones(64)}).save(place / "faint.safetensors")
    faint = cli("eval", "faint.safetensors", "--concept", "nautical")
    refused(faint, 1, "'faint' at strength 1", "nats", "mlxsteer calibrate")
    (place / "faint.safetensors").unlink()
    deaf = cli("eval", "strong.safetensors", "--concept", "nautical", "-m", "deaf")
    refused(deaf, 1, "refuses system messages", 'place = "suffix"')


def test_a_concept_is_swept(cli: Cli, place: Path, tmp_path: Path) -> None:
    folder = place / "harbour"
    shutil.copytree(place / "nautical", folder)
    for name in ("prompts.jsonl", "completions.jsonl"):
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace('"test"', '"dev"'))
    out = ("--json", tmp_path / "s.json", "--markdown", tmp_path / "s.md")
    how = ["--quick", "--layers", "each", "--layers", "1-2", "--site", "mlp_out"]
    how += ["--kl", "0.1", "--kl", "0.5"]  # as one, with commas
    ran = cli("sweep", folder, *how, *out, "--plot", tmp_path / "s.png")
    assert (ran.code, ran.err) == (0, [])
    assert ran.out == (tmp_path / "s.md").read_text()
    assert ran.out.startswith("## nautical on ")
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((tmp_path / "s.json").read_text())
    places = [cell["layers"] for cell in record["cells"]]
    assert places == [[n] for n in range(4) for _ in range(2)] + [[1, 2]] * 2
    assert {(c["site"], c["method"]) for c in record["cells"]} == {("mlp_out", "mean_diff")}
    assert {cell["budget"] for cell in record["cells"]} == {0.1, 0.5}
    shutil.rmtree(folder)


def test_a_plot_that_cannot_be_drawn_is_refused_before_anything_is_measured(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    out = tmp_path / "e.json"
    ran = cli("eval", "nautical", "--plot", tmp_path / "e.png", "--json", out)
    refused(ran, 1, "matplotlib", "mlxsteer[plot]")
    assert not out.exists()
