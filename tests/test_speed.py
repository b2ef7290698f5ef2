"""The pages on speed say what the committed results say; `make docs` writes them anew."""

import json
import re
from pathlib import Path

import pytest

from mlxsteer.bench.pages import file_name, page, plot_contexts, plot_overhead
from mlxsteer.bench.results import Results, Row, read_results
from mlxsteer.report import markdown_table

ROOT = Path(__file__).parents[1]
SCRIPTS = ("extract", "evidence", "batch")
DOCS = ROOT / "docs"
PLOTS = {"overhead": plot_overhead, "contexts": plot_contexts}
RESULTS = ROOT / "bench" / "results"
FILES = sorted(RESULTS.glob("*-smollm2-*.json"))
BLOCK = re.compile(r"(?<=<!-- speed -->\n).*?(?=<!-- end of speed -->)", re.DOTALL)


def readme_table(results: Results) -> str:
    """Return the rows that a reader of the README asks for."""

    def one(what: str, row: Row | None) -> list[str]:
        assert row is not None, what
        nodes = "" if row.extra_nodes is None else f"{row.extra_nodes:+d}".replace("+0", "0")
        base = "mlx-lm's own class" if row.base == "mlx-lm" else "unsteered"
        return [what, base, f"{row.ratio:.3f} [{row.low:.3f}, {row.high:.3f}]", nodes]

    first = results.settings["contexts"][0]
    decode = [r for r in results.rows if (r.kind, r.context, r.batch) == ("decode", first, 1)]
    shown = [one(f"decode, {r.says}", r) for r in decode if not r.control]
    rows = results.find("rows", "decode", first, 8)
    shown.append(one("decode, 8 rows, another vector in every row", rows))
    for case in ("add-1", "add-10", "project"):
        row = results.find(case, "prefill", first, 1)
        shown.append(one(f"prompt of {first} tokens, {row.says if row else case}", row))
    return markdown_table(("what", "against", "speed, 95% interval", "more graph nodes"), shown)


def test_results_are_whole_and_bear_the_name_of_their_machine() -> None:
    assert FILES
    for path in FILES:
        results = read_results(path)
        assert not results.partial
        assert path.name == file_name(results)
        assert not str(results.machine["commit"]).endswith("+"), "measured on changed files"
        assert [row for row in results.rows if row.verdict == "FAIL"] == []


def test_the_page_on_speed_is_current(request: pytest.FixtureRequest) -> None:
    results = read_results(FILES[0])
    plots = [Path("speed") / f"{name}.png" for name in PLOTS]
    text = page(results, plots)
    if request.config.getoption("--write-docs"):
        (DOCS / "speed").mkdir(exist_ok=True)
        for name, draw in PLOTS.items():
            draw(results, DOCS / "speed" / f"{name}.png")
        (DOCS / "speed.md").write_text(text)
    assert (DOCS / "speed.md").read_text() == text, "run make docs"
    assert [path for path in plots if not (DOCS / path).exists()] == []


def test_the_readme_is_current(request: pytest.FixtureRequest) -> None:
    table, path = readme_table(read_results(FILES[0])), ROOT / "README.md"
    if request.config.getoption("--write-docs"):
        path.write_text(BLOCK.sub(lambda _: table, path.read_text()))
    found = BLOCK.search(path.read_text())
    assert found is not None
    assert found[0] == table, "run make docs"


def test_the_figures_of_reading_and_writing_are_those_of_their_scripts() -> None:
    text = " ".join((ROOT / "README.md").read_text().split())
    figures = {n: json.loads((RESULTS / f"{n}.json").read_text())["figures"] for n in SCRIPTS}
    whole, ratio = figures["extract"]["capture"], figures["extract"]["one at a time / batched"]
    assert f"{whole['pairs']} pairs of chat prompts take {whole['seconds']:.1f} s" in text
    assert f"{ratio['ratio']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}] times as long" in text
    library = figures["extract"]["library"]
    made = f"{library['pairs']} pairs of all {library['concepts']} concepts become directions"
    assert f"{made} of all layers in {library['seconds']:.0f} s" in text
    took = figures["evidence"].values()
    calibrating, measuring = (
        f"{min(t[what] for t in took):.0f} to {max(t[what] for t in took):.0f} s"
        for what in ("calibrate", "evaluate")
    )
    said = f"a calibration takes {calibrating} and all that is measured of a vector {measuring}"
    assert said in text
    ratio = figures["batch"]["32 at once / one at a time"]
    assert f"{ratio['ratio']:.1f} times the tokens/s of one at a time" in text
