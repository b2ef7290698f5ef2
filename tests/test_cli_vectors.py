"""`extract`, `calibrate`, `vectors build`, `show`, `convert` and `diff` as they are typed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from tiny import ref
from typed import EXTRACT, PROMPT, SHORT, STRONG, Cli, interrupt, kept, refused, written

from mlxsteer.interop import load_vector
from mlxsteer.vector import Vector, read_vector


def test_a_concept_is_extracted_on_the_spot_once(cli: Cli, monkeypatch) -> None:
    first = cli("generate", PROMPT, *SHORT, "-s", "salty=1")
    assert "extracting it" in first.notes[-1]
    (path,) = kept()
    assert read_vector(path).calibrated
    assert str(path) in first.notes[-1]

    def extract(*arguments: object, **options: object) -> None:
        raise AssertionError("extracted again")

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["mlxsteer.extract"], "extract", extract)
        again = cli("generate", PROMPT, *SHORT, "-s", "salty=1")
        assert (again.out, again.notes) == (first.out, [])
        path.write_bytes(path.read_bytes()[:-1])
        assert cli("generate", PROMPT, *SHORT, "-s", "salty=1").code == 1  # the twin: it is needed
        off = cli("generate", PROMPT, *SHORT, "-s", "salty=0")  # and here it is not
        assert (off.out, off.notes) == (written(cli), [])
    anew = cli("generate", PROMPT, *SHORT, "-s", "salty=1")
    assert anew.out == first.out
    assert "anew" in anew.notes[-1]
    assert kept() == [path]


def test_the_vector_beside_a_concept_is_used(
    cli: Cli, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(place / "salty", tmp_path / "salty")
    path = folder / "tiny.safetensors"
    assert cli("extract", "salty", "-o", path, "--no-calibrate").code == 0
    monkeypatch.setattr(sys.modules["mlxsteer.extract"], "extract", interrupt)
    ran = cli("generate", PROMPT, *SHORT, "-s", f"{folder}=1")
    assert (ran.code, kept()) == (0, [])
    assert "extracting" not in "".join(ran.notes)
    assert "salty" in cli("vectors", "show", folder).out
    vector = read_vector(path)
    vector.replace(model=ref()).save(path)  # of a model of another name
    assert cli("generate", PROMPT, "-s", f"{folder}=1").code == 130
    path.write_bytes(path.read_bytes()[:-1])
    refused(cli("generate", PROMPT, "-s", f"{folder}=1"), 1, "tiny.safetensors", "truncated")


def test_what_a_stranger_wrote_cannot_move_the_cursor(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    Vector.from_rows("x", {1: [1.0]}, positive="a\x1b[2J\nb", license="c\rd").save(path)
    out = cli("vectors", "show", path).out
    assert "\x1b" not in out
    assert "\r" not in out
    assert "a [2J b" in out


def test_a_cache_that_cannot_be_written(cli: Cli, monkeypatch, place: Path) -> None:
    monkeypatch.setenv("MLXSTEER_HOME", str(place / "tiny.gguf"))
    monkeypatch.setattr(sys.modules["mlxsteer.extract"], "extract", interrupt)
    refused(cli("generate", PROMPT, "-s", "salty=1"), 1, "tiny.gguf", "MLXSTEER_HOME")


def concept_copies(place: Path, folder: Path, *names: str) -> list[Path]:
    """Write concepts that are `salty` under other names."""
    for name in names:
        made = shutil.copytree(place / "salty", folder / name)
        text = (made / "vector.toml").read_text()
        (made / "vector.toml").write_text(text.replace('name = "salty"', f'name = "{name}"'))
    return [folder / name for name in names]


def test_build_and_use(
    cli: Cli, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "from").mkdir()
    first, dull, last = concept_copies(place, tmp_path / "from", "first", "dull", "last")
    (dull / "pairs.jsonl").write_text('{"positive": "zzz", "negative": "yyy"}\n')
    out = tmp_path / "out"
    ran = cli("vectors", "build", first, dull, last, "-o", out)
    assert ran.code == 1
    assert ran.out == f"{out}/first/tiny.safetensors\n{out}/last/tiny.safetensors\n"
    assert [line[:11] for line in ran.err] == ["1/3 first: ", "3/3 last: a", "error: dull"]
    assert "the same to the model" in ran.err[-1]
    assert "strength 1 costs 0.5" in ran.err[0]
    before = read_vector(out / "last" / "tiny.safetensors")
    again = cli("vectors", "build", first, last, "-o", out)
    assert (again.code, len(again.err), again.out) == (0, 2, ran.out)
    assert all(line.endswith(" (was there)") for line in again.err)
    anew = cli("vectors", "build", last, "-o", out, "--anew")
    assert "was there" not in anew.err[-1]
    assert read_vector(out / "last" / "tiny.safetensors") == before
    steered = cli("generate", PROMPT, *SHORT, "-s", f"{out}/last=1")
    assert (steered.notes, kept()) == ([], [])  # nothing was extracted
    assert steered.out != written(cli)
    # what is extracted on the spot is calibrated on the text that the build wrote
    monkeypatch.setattr("mlxsteer.neutral.Neutral.write", interrupt)
    assert cli("generate", PROMPT, *SHORT, "-s", "salty=1").code == 0
    monkeypatch.setenv("MLXSTEER_HOME", str(tmp_path / "another"))
    assert cli("generate", PROMPT, *SHORT, "-s", "salty=1").code == 130


def test_a_build_for_a_path_is_found_by_its_path(cli: Cli, place: Path, tmp_path: Path) -> None:
    """Vectors are called as the last part of a model's name, and found so."""
    words = ("-m", place / "tiny", "-o", tmp_path)
    assert cli("vectors", "build", "salty", *words).out == f"{tmp_path}/salty/tiny.safetensors\n"
    assert cli("generate", PROMPT, *SHORT, *words[:2], "-s", f"{tmp_path}/salty=1").notes == []
    assert "calibrated" not in cli("vectors", "show", tmp_path / "salty", *words[:2]).err


WAITING = """
import time, mlxsteer.build, mlxsteer.calibrate, mlxsteer.safe
from mlxsteer.cli import main
mlxsteer.calibrate.safe_range = lambda *a, **kw: mlxsteer.safe.SafeRange(-3, 3, 8, 20, False)
real, calls = mlxsteer.build.extract, []
def extract(*arguments, **options):
    calls.append(1)
    if len(calls) == 3:
        time.sleep(600)
    return real(*arguments, **options)
mlxsteer.build.extract = extract
main()
"""


def test_a_build_that_was_killed_goes_on(cli: Cli, place: Path, tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    folders = concept_copies(place, tmp_path / "from", "a", "b", "c", "d")
    build = ["vectors", "build", *map(str, folders), "-o"]
    with subprocess.Popen(
        [sys.executable, "-c", WAITING, *build, tmp_path / "out"],
        cwd=place,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stderr is not None
        told = next((line for line in process.stderr if line.startswith(b"2/4 ")), b"")
        process.kill()
    assert told.startswith(b"2/4 b: ")
    resumed = cli(*build, tmp_path / "out")
    assert ["was there" in line for line in resumed.err] == [True, True, False, False]
    assert cli(*build, tmp_path / "whole").code == 0
    files = {path: path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.*")}
    assert len(files) == len(list((tmp_path / "whole").rglob("*.*"))) == 4 * 3
    for path, name in files.items():
        assert path.read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_extract_show_use_calibrate(cli: Cli, made: Path) -> None:
    ran = cli(*EXTRACT)
    assert (ran.code, ran.out) == (0, "made.safetensors\n")
    assert "strength 1 costs 0.5" in ran.err[-1]
    shown = cli("vectors", "show", made.name).out
    assert "tiny" in shown
    assert "nats per token" in shown
    assert "text holds  at strengths from -3 to 3" in shown
    record = json.loads(cli("vectors", "show", made.name, "--json").out)
    assert (record["name"], record["n_pairs"], record["width"]) == ("salty", 5, 64)
    assert written(cli, "-s", f"{made.name}=3") != written(cli)

    half = cli("calibrate", made.name, "--budget", 0.25)
    assert (half.code, half.out) == (0, "made.safetensors\n")
    smaller = read_vector(made)
    assert smaller.calibration is not None
    assert smaller.calibration["budget"] == 0.25
    assert max(smaller.scales) < max(record["scales"])


def test_extract_from_pairs(cli: Cli, made: Path) -> None:
    words = ("--site", "mlp_out", "--layers", "2,3", "--read", -2, "--no-calibrate")
    pairs = ("extract", "--pairs", "salty/pairs.jsonl", "--name", "mine", "-o", made.name)
    assert cli(*pairs, *words).code == 0
    found = read_vector(made)
    assert (found.name, found.site, found.layers) == ("mine", "mlp_out", (2, 3))
    assert not found.calibrated
    assert found.token == "prompt token -2"


def test_extract_for_another_operator(cli: Cli, made: Path) -> None:
    ran = cli(*EXTRACT, "--op", "project", "--read", "content", "--remove-negative-mean")
    assert ran.code == 0
    assert "strength 1 removes the direction and costs" in ran.err[-1]
    found = read_vector(made)
    assert (found.op, set(found.scales)) == ("project", {1.0})
    assert written(cli, "-s", f"{made.name}=-20") != written(cli)


@pytest.mark.parametrize(
    ("op", "does"),
    [
        ("add", "adds its rows as stored"),
        ("project", "removes the direction"),
        ("clamp", "holds the direction at its target"),
        ("cap", "keeps the direction below its target"),
    ],
)
def test_what_strength_1_is_said_to_do(op: str, does: str, cli: Cli, made: Path) -> None:
    ran = cli("extract", "salty", "-o", made, "--op", op, "--no-calibrate")
    assert ran.err[-1].endswith(f"not calibrated, strength 1 {does}")
    told = cli("vectors", "show", made).out
    assert f"strength 1  {does}: not calibrated\n" in told
    assert ("targets" in told) == (op in ("clamp", "cap"))
    assert cli("generate", PROMPT, "-n", 1, "-s", made).notes[-1].endswith(f"strength 1 {does}")
    found = read_vector(made)
    found.replace(scales=[0.5] * len(found.layers)).save(made)
    assert (does in cli("vectors", "show", made).out) == (op == "add")


def test_the_file_is_named_after_concept_and_model(cli: Cli, place: Path) -> None:
    assert cli("extract", "salty", "--no-calibrate", "-m", f"{place}/tiny/").code == 0
    path = place / "salty-tiny.safetensors"
    assert path.is_file()
    path.unlink()


def test_convert_there_and_back(cli: Cli, made: Path, place: Path) -> None:
    middle = place / "made.gguf"
    convert = ("vectors", "convert")
    words = ("--model-hint", "llama")
    assert cli(*convert, "strong.safetensors", middle, *words).out == f"{middle}\n"
    assert cli(*convert, middle, made).code == 0
    rows, back = (load_vector(place / name).rows() for name in ("strong.safetensors", made))
    assert rows.keys() == back.keys()
    assert all(np.allclose(rows[n], back[n], rtol=1e-6) for n in rows)
    assert written(cli, "-s", f"{middle}=1") == written(cli, *STRONG)
    refused(cli("calibrate", middle), 2, "-o")
    middle.unlink()


def test_diff(cli: Cli) -> None:
    same = cli("vectors", "diff", "strong.safetensors", "strong.safetensors")
    assert [line.split()[1] for line in same.out.splitlines()[1:]] == ["1", "1"]
    other = json.loads(
        cli("vectors", "diff", "strong.safetensors", "other.safetensors", "--json").out
    )
    assert [row["layer"] for row in other["layers"]] == [1, 2, 3]
    assert [row["cosine"] for row in other["layers"]] == [None] * 3


def test_ds4_there_and_back(cli: Cli, place: Path, made: Path) -> None:
    directions = place / "removes.safetensors"
    strong = read_vector(place / "strong.safetensors")
    unit = {n: row / np.linalg.norm(row) for n, row in strong.rows().items()}
    Vector.from_rows("removes", unit, op="project", site="mlp_out", model=ref()).save(directions)
    middle = place / "removes.f32"
    assert cli("vectors", "convert", directions, middle).code == 0
    refused(cli("vectors", "convert", middle, made), 2, "width")
    assert cli("vectors", "convert", middle, made, "--width", 64).code == 0
    back = read_vector(made)
    assert (back.op, back.site, back.layers) == ("project", "mlp_out", (1, 2))
    assert np.allclose(back.directions, list(unit.values()), atol=1e-6)
    away = ("vectors", "convert", made, place / "again.f32")
    refused(cli(*away), 2, "how many layers", "n_layers")
    assert cli(*away, "--n-layers", 4).code == 0
    assert (place / "again.f32").read_bytes() == middle.read_bytes()
    for path in (directions, middle, place / "again.f32"):
        path.unlink()


def test_features_of_an_sae(cli: Cli, place: Path, made: Path) -> None:
    """What they do is tested with the reader; here, that the words of the command arrive."""
    sae = place / "sae"
    sae.mkdir()
    rng = np.random.default_rng(0)
    arrays = {"W_dec": rng.normal(size=(5, 64)), "W_enc": rng.normal(size=(64, 5))}
    arrays |= {"b_enc": np.zeros(5), "b_dec": np.zeros(64)}
    weights = {name: mx.array(a.astype(np.float32)) for name, a in arrays.items()}
    mx.save_safetensors(str(sae / "sae.safetensors"), weights)
    (sae / "cfg.json").write_text(json.dumps({"hook_name": "blocks.2.hook_resid_post"}))
    convert = ("vectors", "convert", sae / "sae.safetensors")
    for op, target in (("add", None), ("project", None), ("clamp", 8.0), ("cap", 0.5)):
        words = ("--op", op, *(() if target is None else ("--target", target)))
        assert cli(*convert, made, "--feature", 3, *words).code == 0
        found = read_vector(made)
        assert found == load_vector(sae / "sae.safetensors", feature=3, op=op, target=target)
        assert (found.op, found.layers) == (op, (2,))
    refused(cli(*convert, "x.gguf", "--feature", 3, *words), 2, "--model-hint")
    to_gguf = (*convert, "x.gguf", "--feature", 3, "--model-hint", "llama")
    refused(cli(*to_gguf, *words), 1, "op cap cannot be written")
    refused(cli(*convert, "x.f32", "--feature", 3, "--op", "project"), 1, "mlp_out")
    refused(cli(*convert, made, "--feature", 3, "--op", "clamp"), 2, "clamp needs a target")
    refused(cli(*convert, made, "--feature", 3, "--target", 2), 2, "add takes no target")
    refused(cli(*convert, made, "--feature", 3, "--op", "cap", "--target", "nan"), 2, "nan")
    refused(cli(*convert, made, "--feature", 3, "--op", "erase"), 2, "erase", "project")
    refused(cli(*convert, made, "--feature", 5), 2, "5", "0 to 4")
    refused(cli(*convert, made), 1, "sparse autoencoder", "features")
    refused(cli("vectors", "convert", "strong.safetensors", made, "--op", "cap"), 2, "op 'cap'")
    refused(cli(*convert, made, "--feature", 3, "--model-hint", "x"), 2, "--model-hint x")
    shutil.rmtree(sae)
