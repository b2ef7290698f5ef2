"""The benchmark: what it measures, that it can see, what it writes, and what it refuses."""

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from tiny import CONFIGS, LAYERS, VOCABULARY, ref, tiny
from tiny_folder import write_folder

from mlxsteer import MlxsteerError
from mlxsteer.bench import cases as cases_module
from mlxsteer.bench import measure, peers, suite, works
from mlxsteer.bench.cases import CASES, captured, cases, plain, steered, vectors
from mlxsteer.bench.machine import machine, short_name
from mlxsteer.bench.measure import Block, Patience, host_seconds, interleaved, nodes
from mlxsteer.bench.pages import (
    HEAD,
    cells,
    compare_page,
    file_name,
    page,
    plot_contexts,
    plot_overhead,
)
from mlxsteer.bench.results import Results, Row, read_results
from mlxsteer.bench.suite import Plan, run
from mlxsteer.bench.works import Decoder, Work, read
from mlxsteer.cli import main
from mlxsteer.errors import UsageError

WORK = Work("decode", 9)
HASTE = Patience(seconds=0.02, rounds=3, least=5)


@pytest.fixture(autouse=True, scope="module")
def _short_blocks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(works, "LEAST_SECONDS", 0.001)
        yield


def model(family: str = "llama", dtype: str = "float32") -> nn.Module:
    made = tiny(dtype, family=family)
    made.source = ref(model_type=family)
    return made


# The clock


class Clock:
    """Time that passes only when somebody says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.said: list[str] = []
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def block(self, name: str, seconds: Callable[[], float]) -> Block:
        def go() -> None:
            self.said.append(name)
            self.now += seconds()

        def undo() -> None:
            self.now += 100

        return Block(go, undo)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_sides_alternate_and_taking_back_is_not_timed(clock: Clock) -> None:
    a, b = clock.block("a", lambda: 2.0), clock.block("b", lambda: 1.0)
    found = interleaved(a, b, Patience(rounds=4, seconds=1e9))
    assert "".join(clock.said) == "ab" * measure.WARM_UP + "abba" * 4
    assert (found.ratio, found.low, found.high) == (0.5, 0.5, 0.5)  # half the speed
    assert (found.seconds, found.base_seconds, found.rounds) == (2.0, 1.0, 4)


def test_long_blocks_are_warmed_up_once(clock: Clock) -> None:
    a, b = clock.block("a", lambda: 9.0), clock.block("b", lambda: 8.0)
    interleaved(a, b, Patience(rounds=1, seconds=1e9, width=1))
    assert "".join(clock.said) == "ab" + "abba"


def test_rounds_are_added_until_the_interval_is_narrow(clock: Clock) -> None:
    rng = np.random.default_rng(3)
    sides = [clock.block(name, lambda: rng.normal(1, 0.05)) for name in "ab"]
    wide = interleaved(sides[0], sides[1], Patience(width=0.5, seconds=1e9))
    narrow = interleaved(sides[0], sides[1], Patience(width=0.02, seconds=1e9))
    assert wide.rounds == 25
    assert narrow.rounds > 50
    assert narrow.width <= 0.02 < wide.width
    assert narrow.low < 1 < narrow.high
    late = interleaved(sides[0], sides[1], Patience(width=0.02, seconds=1500, least=3))
    assert late.rounds == 4  # each round takes 404 of these seconds


def test_a_slow_stretch_of_the_machine_favours_neither(clock: Clock) -> None:
    def drifting() -> float:
        return 1 + (clock.now // 3000) % 2  # now and then everything takes twice as long

    sides = [clock.block(name, drifting) for name in "ab"]
    found = interleaved(sides[0], sides[1], Patience(rounds=60, width=1, seconds=1e9))
    assert found.low <= 1 <= found.high


def test_nodes_and_host_time() -> None:
    x = mx.array([1.0, 2.0])
    assert [nodes(x), nodes(mx.exp(x)), nodes(mx.sin(mx.exp(x)))] == [0, 1, 2]
    undone: list[int] = []
    assert host_seconds(lambda: mx.exp(x), lambda: undone.append(1)) > 0
    assert len(undone) == measure.BUILDS


# The work


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_block_takes_back_what_it_wrote(family: str) -> None:
    made = model(family)
    decoder = Decoder(plain(made), Work("decode", 12).prompt(VOCABULARY))
    first = decoder.step()
    for _ in range(2):
        block = decoder.block(5)
        block.run()
        block.undo()
        assert [entry.offset for entry in decoder.cache] == [12] * LAYERS
        assert mx.array_equal(decoder.step(), first)
    windows = any(hasattr(entry, "max_size") for entry in decoder.cache)
    assert windows == (family == "gemma3_text")
    assert (decoder.kept is not None) == windows


def test_a_prompt_is_read_as_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(works, "CHUNK", 4)
    made, prompt = model(), Work("prefill", 11, 3).prompt(VOCABULARY)
    logits, cache = read(plain(made), prompt)
    assert mx.allclose(logits[:, 0], made(prompt)[:, -1], atol=1e-5)
    assert cache[0].offset == 11
    assert len({tuple(row) for row in np.array(prompt).tolist()}) == 3


def test_a_piece_is_read_behind_the_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    made, whole = model(), Work("prefill", 17).prompt(VOCABULARY)
    decoder = Decoder(plain(made), whole[:, :12])
    block = decoder.piece(whole[:, 12:])
    given: list[mx.array] = []

    def watched(*args: Any, **named: Any) -> mx.array:
        given.append(made(*args, **named))
        return given[-1]

    monkeypatch.setattr(decoder, "model", watched)
    for _ in range(2):
        block.run()
        assert mx.allclose(given.pop()[:, -1], made(whole)[:, -1], atol=1e-5)
        block.undo()
        assert [entry.offset for entry in decoder.cache] == [12] * LAYERS


@pytest.mark.parametrize(
    ("seconds", "room", "size"), [(1e9, 999, 512), (1e9, 100, 64), (0, 999, 32)]
)
def test_a_piece_is_as_long_as_time_and_room_allow(
    seconds: float, room: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(works, "PIECE_SECONDS", seconds)
    decoder = Decoder(plain(model()), WORK.prompt(VOCABULARY))
    assert decoder.enough_tokens(VOCABULARY, room).shape == (1, size)


def test_blocks_are_long_enough_to_be_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(works, "LEAST_SECONDS", 0.05)
    decoder = Decoder(plain(model()), WORK.prompt(VOCABULARY))
    steps = decoder.enough_steps()
    block = decoder.block(steps)
    start = time.perf_counter()
    block.run()
    assert steps > 2
    assert time.perf_counter() - start > 0.01


# The cases: each steers as it says


@pytest.mark.parametrize("name", CASES)
def test_a_case_steers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases_module, "STRENGTH", 2.0)
    made, case = model(), CASES[name]
    prompt = Work("decode", 9, 2).prompt(VOCABULARY)
    found = vectors(made)
    a = Decoder(steered(made, case, found, 2), prompt)
    b = Decoder(plain(made), prompt)
    same = mx.array_equal(a.step(), b.step())
    assert same == (name == "idle")
    rows = [row.live.steering for row in a.cache[-1].rows]
    assert (rows[0] != rows[1]) == case.rows
    every = {layer for term in rows[0] for layer in term.vector.layers}
    assert every == set(range(LAYERS))


def test_four_vectors_are_four() -> None:
    found = vectors(model())
    assert [len(CASES[f"add-{n}"].recipe(found, 0).terms) for n in (1, 4, 10)] == [1, 4, 10]
    assert len({v.content_sha256 for v in found}) == len(found) == cases_module.VECTORS


def test_unknown_case() -> None:
    assert [case.name for case in cases(["project", "idle"])] == ["idle", "project"]
    assert len(cases()) == len(CASES)
    with pytest.raises(UsageError, match=r"'projekt' \(did you mean project"):
        cases(["projekt"])


def test_the_captured_side_captures(monkeypatch: pytest.MonkeyPatch) -> None:
    made = model()
    sent: list[list[mx.array]] = []
    monkeypatch.setattr(mx, "async_eval", sent.append)
    prompt = WORK.prompt(VOCABULARY)
    logits = captured(made).model(prompt, cache=made.make_cache())
    assert mx.array_equal(logits, made(prompt))
    assert [array.shape for array in sent[0]] == [(1, made.args.hidden_size)] * LAYERS


# The peers


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("dtype", ["float32", "4bit"])
def test_the_peer_is_mlx_lms_class_on_the_same_arrays(family: str, dtype: str) -> None:
    made = model(family, dtype)
    peer = peers.theirs(made)
    assert type(peer).__module__.startswith("mlx_lm.models.")
    prompt = WORK.prompt(VOCABULARY)
    assert mx.array_equal(made(prompt), peer(prompt))
    before = mx.get_active_memory()
    mx.eval(peer.parameters())
    assert mx.get_active_memory() == before


def test_the_naive_wrapper_steers(monkeypatch: pytest.MonkeyPatch) -> None:
    made = model()
    prompt, found = WORK.prompt(VOCABULARY), vectors(made)
    monkeypatch.setattr(cases_module, "STRENGTH", 0.5)
    monkeypatch.setattr(peers, "STRENGTH", 0.5)
    for count in (1, 4):
        case = CASES[f"add-{count}"]
        ours = Decoder(steered(made, case, found, 1), prompt)
        naive = Decoder(peers.wrapped(peers.theirs(made), found[:count]), prompt)
        assert mx.allclose(ours.logits, naive.logits, atol=1e-3)
        assert naive.nodes() - Decoder(plain(made), prompt).nodes() == 4 * count * LAYERS
        assert ours.nodes() == Decoder(plain(made), prompt).nodes()


# The run


@pytest.fixture(scope="module")
def results() -> Results:
    plan = Plan(cases(), contexts=(9, 20), batches=(1, 3), patience=HASTE)
    return run(model(), plan, load_seconds=1.5)


def test_a_plan_has_all_cases_once_and_the_main_ones_at_every_context() -> None:
    plan = Plan(cases(), contexts=(9, 20), batches=(1, 3))
    single = [name for name, case in CASES.items() if not case.rows]
    every = ["add-1", "add-10", "project"]
    expected = [("decode 9", single), ("prefill 9", single)]
    expected += [(w, [name]) for name in every for w in ("decode 20", "prefill behind 20")]
    expected += [("decode 9 x 3", ["add-1", "rows"])]
    assert [(str(work), [case.name for case in found]) for work, found in plan.works()] == expected


def test_a_run_has_every_row(results: Results) -> None:
    single = [name for name, case in CASES.items() if not case.rows]
    expected = [("slow-tap", "decode 16"), ("tiny-wrapped", "decode 16")]
    expected += [(name, f"{kind} 9") for kind in ("decode", "prefill") for name in single]
    main = [name for name in single if CASES[name].every]
    expected += [(name, w) for name in main for w in ("decode 20", "prefill behind 20")]
    expected += [("add-1", "decode 9 x 3"), ("rows", "decode 9 x 3")]
    expected += [(name, "decode 9") for name in ("ours", "wrapped-1", "wrapped-4")]
    assert [(row.case, row.work) for row in results.rows] == [*expected, ("capture", "prefill 9")]
    assert not results.partial
    assert results.model["repo"] == "tiny/random"


def test_nodes_of_the_run(results: Results) -> None:
    extra = {(row.case, row.kind): row.extra_nodes for row in results.rows}
    free = ("idle", "add-1", "add-4", "add-10", "decay", "phase", "rows", "ours")
    for (name, kind), count in extra.items():
        if name in free:
            assert count == 0, (name, kind)
        elif name != "capture":
            assert count, (name, kind)
    assert extra["project", "decode"] == 3 * LAYERS
    assert all(row.peak_gb for row in results.rows)
    assert all(row.host_ms for row in results.rows if row.kind == "decode")


def test_the_planted_taps_are_in_every_run(results: Results) -> None:
    slow, naive = results.rows[:2]
    assert slow.control
    assert naive.control
    assert slow.extra_nodes == 2 * 24 * 2 * peers.SLOW
    assert naive.extra_nodes is not None
    assert naive.extra_nodes > 24


def test_a_slow_tap_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(works, "LEAST_SECONDS", 0.01)
    patience = Patience(width=1, seconds=60, rounds=20)
    plan = Plan(cases(), contexts=(9,), batches=(1,), patience=patience)
    slow, _ = suite._Bench(model(), plan)._controls()
    row = slow()
    assert row.ratio < 0.8  # it doubles the time: no noise hides that
    assert row.verdict == "pass"


def test_an_idle_view_that_steers_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = dataclasses.replace(CASES["idle"], recipe=CASES["add-1"].recipe)
    monkeypatch.setattr(cases_module, "STRENGTH", 1.0)
    done: list[Results] = []
    plan = Plan([broken], contexts=(9,), batches=(1,), peers=False, patience=HASTE)
    with pytest.raises(MlxsteerError, match="at strength 0 the logits are not the plain model's"):
        run(model(), plan, load_seconds=0, found=done.append)
    assert {row.case for row in done[-1].rows} == {"slow-tap", "tiny-wrapped"}


def test_plans_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="a context of 4096 is too long: the model holds 256"):
        run(model(), Plan(cases()), load_seconds=0)
    with pytest.raises(UsageError, match="needs a --batch above 1"):
        run(model(), Plan(cases(["rows"]), contexts=(9,), batches=(1,)), load_seconds=0)


# Results


def row(**changes: Any) -> Row:
    values: dict[str, Any] = {
        "case": "add-1", "base": "off", "says": "one", "kind": "decode", "context": 9, "batch": 1,
        "ratio": 0.99, "low": 0.985, "high": 0.995, "rounds": 9, "seconds": 0.5,
        "base_seconds": 0.495, "tokens": 10, "peak_gb": 1.0, "base_peak_gb": 1.0,
        "nodes": 7, "base_nodes": 7, "target": 0.98,
    }  # fmt: skip
    return Row(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "pass"),
        ({"low": 0.979}, "open"),
        ({"low": 0.981, "high": 1.01}, "open"),
        ({"low": 0.97, "high": 0.979}, "FAIL"),
        ({"target": None}, ""),
        ({"control": True}, "pass"),
        ({"control": True, "high": 1.001}, "FAIL"),
        ({"case": "idle", "target": None}, "pass"),
        ({"case": "idle", "target": None, "nodes": 8}, "FAIL"),
        ({"case": "idle", "target": None, "nodes": None}, "FAIL"),
    ],
)
def test_verdicts(changes: dict[str, Any], verdict: str) -> None:
    assert row(**changes).verdict == verdict


def result(*rows: Row, **machine_changes: Any) -> Results:
    return Results({**machine(), **machine_changes}, dataclasses.asdict(ref()), {}, 1.0, list(rows))


def test_a_result_comes_back(tmp_path: Path, results: Results) -> None:
    results.save(tmp_path / "r.json")
    assert read_results(tmp_path / "r.json") == results
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[", "not JSON"),
        ("[]", "not a result"),
        ('{"rows": []}', "not a result"),
        ('{"schema": 0, "rows": []}', "of another schema version than 1; run mlxsteer bench again"),
        ('{"schema": 1, "rows": [{"case": "x"}]}', "damaged"),
        ('{"schema": 1, "rows": [], "colour": "red"}', "damaged"),
    ],
)
def test_what_is_no_result(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(MlxsteerError, match=words):
        read_results(tmp_path / "r.json")
    with pytest.raises(MlxsteerError, match="cannot be read: No such file"):
        read_results(tmp_path / "none.json")


def test_two_results_side_by_side() -> None:
    ours = row()
    slower = row(ratio=0.9, low=0.89, high=0.91, seconds=0.55)
    text = compare_page(result(ours), result(slower, chip="M9"), ("a", "b"))
    assert text is not None
    assert "-> M9" in text
    assert "0.990 [0.985, 0.995] | 0.900 [0.890, 0.910] | yes | 20.0 -> 18.2 (-9%)" in text
    same = compare_page(result(ours), result(ours), ("a", "b"))
    assert same is not None
    assert "nothing but the time" in same
    assert " yes " not in same
    assert compare_page(result(ours), result(row(context=10)), ("a", "b")) is None


def test_the_page_and_the_plots(results: Results, tmp_path: Path) -> None:
    text = page(results, [Path("overhead.png")])
    assert text.count("\n| decode") + text.count("\n| prefill") == len(results.rows)
    assert "![overhead](overhead.png)" in text
    assert "interrupted" not in text
    assert "interrupted" in page(dataclasses.replace(results, partial=True))
    assert all(len(cells(row)) == len(HEAD) for row in results.rows)
    for draw in (plot_overhead, plot_contexts):
        draw(results, tmp_path / "1.png")
        draw(results, tmp_path / "2.png")
        drawn = (tmp_path / "1.png").read_bytes()
        assert drawn == (tmp_path / "2.png").read_bytes()
        assert drawn.startswith(b"\x89PNG")
        assert len(drawn) > 5000


def test_the_machine_is_named_and_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    import getpass
    import platform

    record = machine()
    text = json.dumps(record)
    assert platform.node() not in text
    assert f'"{getpass.getuser()}"' not in text
    assert str(Path.home()) not in text
    assert record["device"] == "CPU"
    assert short_name(record).replace("-", "").isalnum()
    apple = {**record, "chip": "Apple M4 Max", "gpu_cores": 40, "memory_gb": 68.7}
    assert short_name(apple) == "apple-m4-max-40-gpu-69gb"


# The command


@dataclasses.dataclass
class Ran:
    code: int
    out: list[str]
    err: list[str]


@pytest.fixture
def cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Ran]]:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "tiny")
    monkeypatch.setenv("MLXSTEER_MODEL", "tiny")
    log = logging.getLogger("mlxsteer")
    before = log.handlers[:], log.level, log.propagate

    def call(*words: object) -> Ran:
        with pytest.raises(SystemExit) as end:
            main(["bench", *map(str, words)])
        out, err = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return Ran(end.value.code, out.splitlines(), err.splitlines())

    yield call
    log.handlers[:], log.level, log.propagate = before


SHORT = ("--case", "add-1", "--context", 16, "--batch", "1,2", "--seconds", 0.02)


def test_the_command(cli: Callable[..., Ran], tmp_path: Path) -> None:
    files = ("--json", "r.json", "--markdown", "r.md", "--plots", "drawn")
    ran = cli(*SHORT, *files)
    assert ran.code == 0, ran.err
    document = json.loads(ran.out[-1])
    assert document == json.loads((tmp_path / "r.json").read_text())
    assert not document["partial"]
    assert [row["case"] for row in document["rows"]].count("add-1") == 3
    assert len(ran.out) == 1 + len(document["rows"]) + 1
    drawn = {path.name for path in (tmp_path / "drawn").iterdir()}
    assert drawn == {"overhead.png", "contexts.png"}
    assert "](drawn/overhead.png)" in (tmp_path / "r.md").read_text()
    shown = cli("show", "r.json")
    assert shown.out == ran.out[:-1]
    assert "yes" not in "".join(cli("compare", "r.json", "r.json").out)


def test_a_folder_names_the_file(cli: Callable[..., Ran], tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    ran = cli("--case", "add-1", "--context", 9, "--batch", 1, "--seconds", 0.02, "--json", "kept")
    assert ran.code == 0, ran.err
    (file,) = (tmp_path / "kept").iterdir()
    assert file.name == file_name(read_results(file))
    assert file.name.endswith("-tiny.json")


def test_an_interrupted_run_keeps_what_is_done(
    cli: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(suite._Bench, "_case", interrupted)
    ran = cli(*SHORT, "--json", "r.json")
    assert ran.code == 130
    assert read_results(tmp_path / "r.json").partial
    assert len(json.loads(ran.out[-1])["rows"]) == 2
    assert any("partial" in line for line in ran.err)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--case", "projekt"), "no case is called 'projekt' (did you mean project?)"),
        (("--context", "12,x"), "--context '12,x': use numbers from 1"),
        (("--context", "100000"), "a context of 100000 is too long"),
        (("--batch", "0"), "--batch '0': use numbers from 1"),
        (("--seconds", "0"), "--seconds"),
        (("--json", "r.txt"), "name a file that ends in .json"),
        (("-m", "nowhere"), "no model is called 'nowhere'"),
        (("show", "none.json"), "cannot be read"),
        (("compare", "none.json", "none.json"), "cannot be read"),
        (("compar",), "no command is called 'compar' (did you mean compare?)"),
    ],
)
def test_bad_input(words: tuple[str, ...], said: str, cli: Callable[..., Ran]) -> None:
    ran = cli(*words)
    assert ran.code in (1, 2)
    assert ran.out == []
    lines = [line for line in ran.err if not line.startswith("note: ")]
    assert len(lines) == 1
    assert said in lines[0]
