"""What commands refuse: one line, the way out in it, an exit code, and nothing left behind."""

import os
from pathlib import Path

import pytest
from typed import GENERATE, STRONG, Cli, kept, refused

BEFORE_LOADING = [
    (["genrate"], 2, ["did you mean generate?", "mlxsteer --help"]),
    (["vectors", "lst"], 2, ["did you mean list?", "mlxsteer vectors --help"]),
    (["generate"], 2, ["PROMPT", "mlxsteer generate --help"]),
    ([*GENERATE, "--nope"], 2, ["--nope"]),
    ([*GENERATE, "--prompts", "x.txt"], 2, ["PROMPT", "--prompts"]),
    (["generate", "--prompts", "none.txt"], 1, ["none.txt", "cannot be read"]),
    (["generate", "--prompts", "pairs_not_json.jsonl"], 1, ["line 1"]),
    (["generate", "--prompts", "x.txt", "--system", "y"], 2, ["--system"]),
    ([*GENERATE, *STRONG, "--schedule", "decay"], 2, ["decay", "no length"]),
    ([*GENERATE, *STRONG, "--schedule", "fade(3)"], 2, ["fade(3)", "ramp(32)"]),
    ([*GENERATE, "--schedule", "decay(3)"], 2, ["--schedule", "-s NAME=STRENGTH"]),
    ([*GENERATE, "--keep-norm"], 2, ["--keep-norm", "-s NAME=STRENGTH"]),
    (["vectors", "diff", "strong.safetensors", "narrow.safetensors"], 1, ["width"]),
    (["vectors", "convert", "strong.safetensors", "x.f32"], 1, ["project"]),
    ([*GENERATE, "--dtype", "int8"], 2, ["int8", "bfloat16"]),
    (["generate", ""], 2, ["prompt is empty"]),
    (["generate", "-"], 2, ["prompt is empty"]),
    (["generate", "a\udcffb"], 2, ["UTF-8"]),
    *(
        ([*GENERATE, "-s", f"strong.safetensors={strength}"], 2, [strength, "finite number"])
        for strength in ("nan", "inf", "-inf", "1e999", "abc", "")
    ),
    ([*GENERATE, "-s", "=1"], 2, ["'=1'", "NAME=STRENGTH"]),
    ([*GENERATE, "-s", "strong.safetensors=1e9"], 2, ["1e9", "large"]),
    ([*GENERATE, *STRONG, *STRONG], 2, ["strong.safetensors", "twice"]),
    ([*GENERATE, "-s", "joyfull=1"], 1, ["joyfull", "did you mean joyful?"]),
    ([*GENERATE, "-s", "none.safetensors=1"], 1, ["none.safetensors", "check the path"]),
    ([*GENERATE, "-s", "vector_nan.safetensors=1"], 1, ["vector_nan.safetensors", "NaN"]),
    ([*GENERATE, "-s", "vector_altered.safetensors=1"], 1, ["content_sha256"]),
    ([*GENERATE, "-s", "new.safetensors=1"], 1, ["format_version 2", "update mlxsteer"]),
    ([*GENERATE, "-s", "cut.safetensors=1"], 1, ["truncated"]),
    ([*GENERATE, "-s", "tiny/model.safetensors=1"], 1, ["no vector file", "-m"]),
    ([*GENERATE, "-s", "tiny.gguf=1"], 1, ["no vector", "-m"]),
    ([*GENERATE, "-s", "cut.gguf=1"], 1, ["cut.gguf", "truncated"]),
    ([*GENERATE, *STRONG, "--phase", "later"], 2, ["later", "response"]),
    ([*GENERATE, *STRONG, "--layers", "3-1"], 2, ["3-1", "backwards"]),
    ([*GENERATE, *STRONG, "--layers", "one"], 2, ["one", "3,5,7"]),
    ([*GENERATE, *STRONG, "--layers", "0-9999999999999"], 2, ["9999999999999"]),
    ([*GENERATE, "--layers", "1"], 2, ["--layers", "-s NAME=STRENGTH"]),
    ([*GENERATE, "--phase", "all"], 2, ["--phase", "-s NAME=STRENGTH"]),
    ([*GENERATE, "--compare"], 2, ["--compare", "-s NAME=STRENGTH"]),
    ([*GENERATE, "--raw", "--system", "be short"], 2, ["--raw", "--system"]),
    ([*GENERATE, "--raw", "--no-thinking"], 2, ["--raw", "--no-thinking"]),
    ([*GENERATE, "--top-p", 0.9], 2, ["--top-p", "--temp"]),
    ([*GENERATE, "--temp", "nan"], 2, ["temp nan"]),
    ([*GENERATE, "--temp", -1], 2, ["temp -1"]),
    ([*GENERATE, "--temp", 1, "--top-p", 2], 2, ["top_p 2"]),
    ([*GENERATE, "-n", 0], 2, ["--max-tokens 0", "from 1"]),
    ([*GENERATE, "-n", "many"], 2, ["many"]),
    ([*GENERATE, "--seed", -1], 2, ["--seed -1"]),
    ([*GENERATE, "--seed", 2**64], 2, ["--seed"]),
    (["demo", "--concept", "glee"], 1, ["glee", "joyful"]),
    (["demo", "--prompt", ""], 2, ["prompt is empty"]),
    (["extract"], 2, ["CONCEPT", "--pairs"]),
    (["extract", "salty", "--pairs", "pairs.jsonl"], 2, ["CONCEPT", "--pairs"]),
    (["extract", "piratt"], 1, ["piratt", "did you mean pirate?"]),
    (["extract", "tiny"], 1, ["vector.toml"]),
    (["extract", "salty", "--site", "resid_pre"], 2, ["resid_pre", "resid_post"]),
    (["extract", "salty", "--method", "magic"], 2, ["magic", "mean_diff"]),
    (["extract", "salty", "--op", "erase"], 2, ["erase", "project"]),
    (["extract", "salty", "--response-tokens", 0], 2, ["--response-tokens 0"]),
    (["extract", "salty", "--read", "all"], 2, ["'all'", "response"]),
    (["extract", "salty", "--layers", "x"], 2, ["'x'"]),
    (["extract", "salty", "--name", "a\nb"], 2, ["a\\nb"]),
    (["extract", "salty", "-o", "tiny"], 2, ["tiny", "is a folder"]),
    (["extract", "salty", "-o", "no/where.safetensors"], 2, ["no", "make it first"]),
    (["extract", "salty", "-o", "made.gguf"], 2, ["made.gguf", ".safetensors"]),
    (["extract", "--pairs", "none.jsonl"], 1, ["none.jsonl", "No such file"]),
    (["extract", "--pairs", "pairs_empty.jsonl"], 1, ["pairs_empty.jsonl", "empty"]),
    (["extract", "--pairs", "pairs_not_json.jsonl"], 1, ["line 3", "not JSON"]),
    (["extract", "--pairs", "pairs_equal.jsonl"], 1, ["line 3", "equal"]),
    (["calibrate", "none.safetensors"], 1, ["none.safetensors"]),
    (["calibrate", "salty"], 2, ["mlxsteer extract salty"]),
    (["calibrate", "strong.safetensors", "--budget", 0], 2, ["--budget 0"]),
    (["calibrate", "strong.safetensors", "--budget", "inf"], 2, ["--budget inf"]),
    (["calibrate", "strong.safetensors", "-o", "x.gguf"], 2, ["x.gguf", ".safetensors"]),
    (["eval", "salty"], 1, ["salty", "no recipe", "vector.toml"]),
    (["eval", "nautical", "--split", "dev"], 1, ["nautical", "0 completions", "dev"]),
    (["eval", "strong.safetensors"], 1, ["strong.safetensors", "'strong'", "--concept"]),
    (["eval", "nautical", "--plot", "x.svg"], 2, ["x.svg", ".png"]),
    (["sweep", "salty"], 1, ["salty", "no recipe"]),
    (["sweep", "nautical"], 1, ["nautical", "0 completions", "dev"]),
    (["sweep", "strong.safetensors"], 2, ["strong.safetensors is a vector", "name the concept"]),
    (["sweep", "pirate", "--kl", "much"], 2, ["'much'", "0.5,1"]),
    (["sweep", "pirate", "--site", "mlp_out,attic"], 2, ["'attic'", "resid_post"]),
    (["sweep", "pirate", "--method", "guess"], 2, ["'guess'", "mean_diff"]),
    (["sweep", "pirate", "--layers", "9-3"], 2, ["9-3", "backwards"]),
    (["sweep", "pirate", "--read", "all"], 2, ["'all'", "response"]),
    (["sweep", "pirate", "--plot", "x.svg"], 2, ["x.svg", ".png"]),
    (["vectors", "show", "joyfull"], 1, ["joyfull", "did you mean joyful?"]),
    (["vectors", "show", "salty"], 1, ["salty", "tiny", "mlxsteer extract"]),
    (["vectors", "build", "-o", "x"], 2, ["CONCEPT", "--all"]),
    (["vectors", "build", "salty", "--all", "-o", "x"], 2, ["CONCEPT", "--all"]),
    (["vectors", "build", "salty"], 2, ["--output", "mlxsteer vectors build --help"]),
    (["vectors", "build", "salty", "piratt", "-o", "x"], 1, ["did you mean pirate?"]),
    (["vectors", "build", "salty", "-o", "tiny.gguf"], 2, ["tiny.gguf is a file", "name a folder"]),
    (["vectors", "build", "salty", "-o", "no/where"], 2, ["no is no folder", "make it first"]),
    (["vectors", "convert", "none.gguf", "x.safetensors"], 1, ["none.gguf", "check the path"]),
    (["vectors", "convert", "strong.safetensors", "x.npz"], 2, ["x.npz", ".gguf"]),
    (["vectors", "convert", "strong.safetensors", "x.gguf"], 2, ["--model-hint"]),
    (["vectors", "convert", "strong.safetensors", "x.gguf", "--model-hint", "a\n"], 2, ["'a\\n'"]),
    ([*GENERATE, "-s", "headless.f32=1"], 2, ["width", "vectors convert", "--width"]),
    (["models", "show", "smollm"], 1, ["smollm", "did you mean smollm2-135m?"]),
]


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize(
    ("words", "code", "said"), BEFORE_LOADING, ids=lambda value: ascii(value)[:60]
)
def test_refused_before_any_work(words: list[object], code: int, said: list[str], cli: Cli) -> None:
    refused(cli(*words), code, *said)


@pytest.mark.usefixtures("unloaded")
def test_that_work_would_be_noticed(cli: Cli) -> None:
    assert "a model was loaded" in cli(*GENERATE).err[-1]


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize("locked", ["folder", "file"])
def test_a_place_that_cannot_be_written(locked: str, cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "made.safetensors"
    if locked == "file":
        path.touch(0o400)
    else:
        tmp_path.chmod(0o500)
    if os.access(path if locked == "file" else tmp_path, os.W_OK):
        pytest.skip("this user may write everywhere")
    refused(cli("extract", "salty", "-o", path), 2, str(path), "name")
    if locked == "folder":
        refused(cli("vectors", "build", "salty", "-o", tmp_path), 2, str(tmp_path), "name")


@pytest.mark.usefixtures("unloaded")
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="there is no /proc")
def test_a_place_that_only_seems_writable(cli: Cli) -> None:
    refused(cli("extract", "salty", "-o", "/proc/made.safetensors"), 2, "/proc/made.safetensors")
    refused(cli("vectors", "build", "salty", "-o", "/proc/made"), 2, "/proc/made cannot be written")


AFTER_LOADING = [
    ([*GENERATE, "-m", "nope"], 1, ["nope", "owner/name"]),
    ([*GENERATE, "-m", "smollm2"], 1, ["did you mean smollm2-135m?"]),
    ([*GENERATE, "-m", "owner/name"], 1, ["owner/name"]),
    ([*GENERATE, "-m", "none.gguf"], 1, ["none.gguf", "check the path"]),
    ([*GENERATE, "-m", "strong.safetensors"], 1, ["strong.safetensors", "folder"]),
    ([*GENERATE, "-m", "hollow"], 1, ["hollow", "no weights"]),
    ([*GENERATE, "-m", "hole"], 1, ["hole", "model.layers.2.mlp.up_proj.weight"]),
    ([*GENERATE, "-m", "cut.gguf"], 1, ["cut.gguf", "truncated"]),
    ([*GENERATE, "-m", "bert.gguf"], 1, ["bert", "safetensors"]),
    ([*GENERATE, "--revision", "main"], 2, ["main", "local"]),
    ([*GENERATE, "-s", "narrow.safetensors=1"], 1, ["narrow", "2", "64"]),
    ([*GENERATE, "-s", "narrow.safetensors=0"], 1, ["narrow", "2", "64"]),
    ([*GENERATE, "-s", "deep.safetensors=1"], 1, ["deep", "7", "4"]),
    ([*GENERATE, "-s", "tall.safetensors=1"], 1, ["tall", "8 layers"]),
    ([*GENERATE, "-s", "salty=1", "-s", "narrow.safetensors=1"], 1, ["narrow"]),
    ([*GENERATE, *STRONG, "--layers", "3"], 2, ["3", "1, 2"]),
    ([*GENERATE, "-s", "strong.safetensors=1e6", "--dtype", "float16"], 2, ["1e+06", "NaN"]),
    (["generate", "sea " * 300], 1, ["303", "256"]),
    (["generate", "sea " * 300, "-s", "salty=1"], 1, ["256"]),
    (["generate", "--prompts", "long.txt"], 1, ["long.txt, prompt 2", "256"]),
    (["extract", "--pairs", "long.jsonl"], 1, ["pair 1, positive", "256"]),
    (["extract", "salty", "--layers", "3-4"], 2, ["layer 4", "0 to 3"]),
    (["extract", "salty", "--read", 99], 2, ["99"]),
    (["calibrate", "narrow.safetensors"], 1, ["narrow", "2", "64"]),
    (["vectors", "build", "salty", "./salty", "-o", "x"], 2, ["two concepts", "'salty'"]),
]


@pytest.mark.parametrize(
    ("words", "code", "said"), AFTER_LOADING, ids=lambda value: ascii(value)[:60]
)
def test_refused_by_the_model(words: list[object], code: int, said: list[str], cli: Cli) -> None:
    refused(cli(*words), code, *said)
    assert kept() == []  # nothing was extracted before it


def test_not_enough_memory(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlxsteer.backend.available_memory", lambda: 1000)
    refused(cli(*GENERATE), 1, "tiny", "memory", "smaller model")
