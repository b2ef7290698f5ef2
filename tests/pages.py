"""Pages that say what vectors, evaluations and the gallery say: the README's table, the cards,
docs/library.md and docs/gallery.md. Everything is made from committed files alone; concepts of
which something is missing say so.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxsteer.claims import Claim, Record, claims, condition, interval, nulls, number, records
from mlxsteer.library import Concept, known_model
from mlxsteer.measured import inert, layers_of, mean, safe_range, said, shown, strengths, table
from mlxsteer.report import COLOURS, figure, markdown_table
from mlxsteer.safe import STRENGTHS
from mlxsteer.values import parsed
from mlxsteer.vector import Vector, read_vector

ROOT = Path(__file__).parents[1]
MODEL = "smollm2-135m"
GALLERY = ROOT / "bench" / "results" / "gallery.json"
PLOT = "library/effect.png"  # relative to docs/

README_HEAD = ("concept", "positive", "negative", "layers", "strengths", "effect", "verdict")
LIBRARY_HEAD = (
    "concept",
    "verdict",
    "steered at 1 less the strongest null",
    "that null",
    "moved the wrong way",
    "holds together",
    "margin on knowledge",
    "shows in text: plain, asked, steered",
    "by the rule: plain, asked, steered",
    "steered less asked",
    "tokens saved",
)


@dataclass(frozen=True)
class Known:
    """One concept, and what is known of it on `MODEL`."""

    concept: Concept
    vector: Vector | None
    record: Record | None
    claim: Claim | None

    @property
    def verdict(self) -> str:
        if self.claim is None:
            return "recipe" if self.vector is None else "not measured"
        word = "passes" if self.claim.passed else "FAILS"
        return word if self.vector is not None else f"recipe: {word}"


def known(library: Sequence[Concept]) -> list[Known]:
    """Return what is known of each, the claims corrected over all of them."""
    vectors: dict[str, Vector] = {}
    found: dict[str, Record] = {}
    for one in library:
        if (path := one.vector_path(MODEL)) is not None:
            vectors[one.name] = read_vector(path)
        if (record := evaluation(one, vectors.get(one.name))) is not None:
            found[one.name] = record
    stood = claims(found)
    return [Known(c, vectors.get(c.name), found.get(c.name), stood.get(c.name)) for c in library]


def evaluations(found: Concept) -> tuple[Record, ...]:
    """Return what `evaluation.json` holds of `MODEL`."""
    path, model = found.folder / "evaluation.json", known_model(MODEL)
    assert model is not None
    if not path.is_file():
        return ()
    repos = {entry.repo for entry in model.hub}
    every = records(parsed(path.read_bytes(), str(path)))
    return tuple(record for record in every if record.get("model") in repos)


def evaluation(found: Concept, vector: Vector | None) -> Record | None:
    """Return the evaluation of that vector; without one, of the vector that failed."""
    fits = (
        record
        for record in evaluations(found)
        if vector is None or record.get("vector_sha256") == vector.content_sha256
    )
    return next(fits, None)


def gallery(path: Path = GALLERY) -> dict[str, Any]:
    """Return what vectors make the model write, nothing where that was not recorded."""
    none: dict[str, Any] = {"prompts": [], "strengths": [], "tokens": 0, "concepts": {}}
    found: dict[str, Any] = json.loads(path.read_text())["figures"] if path.is_file() else none
    return found


# README


def readme(library: Sequence[Known], drawn: bool) -> str:
    """Return the table of concepts and what it says; `drawn`: whether there is a gallery."""
    rows = []
    for one in library:
        figures = ["", ""]
        if one.vector is not None:
            safe = safe_range(one.vector)
            figures = [layers_of(one.vector), strengths(safe) if safe else ""]
        effect = "" if one.claim is None else shown(one.claim.difference)
        name = f"[`{one.concept.name}`](vectors/{one.concept.name}/README.md)"
        poles = [one.concept.positive, one.concept.negative]
        rows.append([name, *poles, *figures, effect, one.verdict])
    return f"{markdown_table(README_HEAD, rows)}\n{_told(library, drawn)}"


def _told(library: Sequence[Known], drawn: bool) -> str:
    claimed = [one for one in library if one.claim is not None]
    recipe = "a concept without a vector ships as a recipe, and `-s NAME=1` extracts it on the spot"
    seen = " What each makes the model write: [docs/gallery.md](docs/gallery.md)." * drawn
    text = f"Of SmolLM2-135M; {recipe}."
    if any(one.vector and safe_range(one.vector) for one in library):
        text += " Strengths: between these the text holds together."
    if not claimed:
        return (
            f"{text}{seen} What a vector does beyond its own prompts is not measured yet: the "
            "cards in `vectors/` show recipes, not evidence.\n"
        )
    passed = sum(one.verdict == "passes" for one in claimed)
    return (
        f"{text} Effect: how much more strength 1 moves the log-odds of held-out completions than "
        "the strongest null of the same cost, nats per token, with its 95% interval corrected over "
        f"the {len(claimed)} concepts measured (Holm). **{passed} of them pass**: that is above 0 "
        "and the text holds together; what fails is a recipe for larger models, and its card "
        f"says so. Asking in words does more for {_asking_wins(claimed)}. All that was measured: "
        f"[docs/library.md](docs/library.md).{seen}\n\n![strength 1 less the strongest null, by "
        f"concept](docs/{PLOT})\n"
    )


def _asking_wins(claimed: Sequence[Known]) -> str:
    """Return for how many asking surely does more."""
    against = [interval((one.record or {}).get("against_prompt")) for one in claimed]
    return f"{sum(found is not None and found.below for found in against)} of them"


# Cards


def card(one: Known, drawn: dict[str, Any]) -> str:
    """Return what a card says of the vector beside it, or of there being none."""
    parts = [_strength_one(one)]
    if one.claim is not None:
        parts.append(_verdict(one.concept.name, one.claim))
    parts += _written(one, drawn)
    if one.record is not None:
        parts += _evidence(one, one.record)
    elif one.vector is not None:
        parts.append("What it does beyond its own prompts was not measured.")
    parts += [_use(one), _limits(one)]
    return "\n\n".join(parts) + "\n"


def _strength_one(one: Known) -> str:
    if one.vector is None:
        failed = one.claim is not None and not one.claim.passed
        why = f" What the recipe gives on `{MODEL}` fails its evidence." if failed else ""
        return (
            f"It ships as a recipe: there is no vector of it for `{MODEL}` here, and "
            f"`-s {one.concept.name}=1` extracts one on the spot, on the middle third of the "
            f"layers.{why}"
        )
    assert one.vector.calibration is not None
    factor, kl = one.vector.calibration["factor"], one.vector.calibration["kl"]
    return (
        f"For `{MODEL}`, strength 1 adds {factor:.2f} times the mean difference on layers "
        f"{layers_of(one.vector)},\nwhich costs {kl:.2f} nats per token."
    )


def _verdict(name: str, claim: Claim) -> str:
    fails = (
        "It FAILS its evidence on this model and ships as a recipe, to be tried on larger ones; "
        "the figures say why."
    )
    return (
        f"**{'It passes its evidence.' if claim.passed else fails}** At equal KL, strength 1 less "
        f"the strongest null ({inert(claim.null)}) is {shown(claim.difference)} nats per token, "
        "corrected over all concepts measured (Holm)."
    )


def _written(one: Known, drawn: dict[str, Any]) -> list[str]:
    """Return what the vector makes the model write, if that was recorded of this very vector."""
    entry = drawn["concepts"].get(one.concept.name)
    if entry is None or one.vector is None or entry["vector_sha256"] != one.vector.content_sha256:
        return []
    head = f"Greedy, the first {drawn['tokens']} tokens (`bench/gallery.py`):"
    return ["### What it does", head, answers(drawn, entry)]


def answers(drawn: dict[str, Any], entry: dict[str, Any]) -> str:
    """Return what was written: a row per strength, a column per prompt."""
    rows = []
    for i, strength in enumerate(drawn["strengths"]):
        cells = []
        for number_, some in enumerate(entry["answers"]):
            counts = entry["counted"]
            counted = "" if counts is None else f" ({counts[number_][i]:.2g})"
            cells.append(f"{inert(some[i]) or '(nothing)'}{counted}")
        rows.append([f"{strength:+g}" if strength else "0", *cells])
    return markdown_table(["strength", *map(inert, drawn["prompts"])], rows).rstrip()


def _evidence(one: Known, record: Record) -> list[str]:
    name = one.concept.name
    again = f"`mlxsteer eval {name}` measures it again"
    if one.vector is None:
        again = (
            f"`mlxsteer vectors build {name} -m {MODEL} -o library`, which chooses the layers, and "
            f"`mlxsteer eval library/{name}` measure it again"
        )
    more = {
        **record,
        "verdict": list(record.get("verdict", ()))[1:],
    }  # the first: what passed alone
    parts = ["### What was measured", said(more), table(record).rstrip()]
    parts.append(
        f"{_nulls(record)} Everything, answers too, is in [evaluation.json](evaluation.json); "
        f"{again}, and [docs/library.md](../../docs/library.md) says how."
    )
    if (one.concept.folder / "effect.png").is_file():
        parts.append("![effect against strength, beside asking and nulls](effect.png)")
    return parts


def _nulls(record: Record) -> str:
    first = [
        f"{inert(str(null.get('name')))} ({inert(str(null.get('kind')))}) "
        f"{shown(interval(null.get('effect')))}"
        for null in nulls(record)[:3]
    ]
    return f"The strongest of {len(nulls(record))} nulls of the same KL: {', '.join(first)}."


def _use(one: Known) -> str:
    name = one.concept.name
    lines = ["### How to use it", f'```sh\nmlxsteer generate "PROMPT" -s {name}=1\n```']
    if one.vector is None:
        source = f'vector = extract(model, tokenizer, "{name}")'
        imported = "Steering, extract, generate, load"
    else:
        source = f'vector = load_vector("vectors/{name}/{MODEL}.safetensors")'
        imported = "Steering, generate, load, load_vector"
    lines.append(
        f'```python\nfrom mlxsteer import {imported}\n\nmodel, tokenizer = load("{MODEL}")\n'
        f'{source}\nprint(generate(model, tokenizer, "PROMPT", '
        "steering=Steering((vector, 1.0))))\n```"
    )
    made = "" if one.vector is not None else f"mlxsteer extract {name} -o {MODEL}.safetensors\n"
    path = f"{MODEL}.safetensors" if made else f"vectors/{name}/{MODEL}.safetensors"
    lines.append(
        f"In llama.cpp, with a GGUF of the same model:\n\n```sh\n{made}"
        f"mlxsteer vectors convert {path} {name}.gguf\n"
        f'llama-cli -m MODEL.gguf --control-vector {name}.gguf -p "PROMPT"\n```'
    )
    return "\n\n".join(lines)


def _limits(one: Known) -> str:
    lines = []
    if one.vector is not None:
        safe = safe_range(one.vector)
        lines.append(
            "How far it can be pushed before its text breaks was not measured."
            if safe is None
            else f"Its text was found to hold together at strengths from {strengths(safe)}; tried "
            f"were {', '.join(f'{s:g}' for s in STRENGTHS)} and as many negative ones."
        )
    if one.record is not None:
        effect = interval(condition(one.record, 1.0).get("effect"))
        if effect is not None:
            lines.append(
                f"It moves {effect.wrong_way:.0%} of the held-out prompts the wrong way. These are "
                "short everyday prompts in English; nothing else was measured."
            )
    lines.append(
        f"`{MODEL}` is a very small model. For another, `-m MODEL` extracts a vector of its own, "
        "of which nothing here says anything."
    )
    return "### Limits\n\n" + "\n".join(f"- {line}" for line in lines)


# docs/library.md


def library_page(library: Sequence[Known]) -> str:
    """Return the page on the evidence of the whole library."""
    claimed = [one for one in library if one.claim is not None and one.record is not None]
    left = ", ".join(f"`{one.concept.name}`" for one in library if one not in claimed)
    parts = [
        "# The library, measured\n",
        "Written by `make docs` from `vectors/*/evaluation.json`.",
    ]
    if claimed:
        passed = sum(one.verdict == "passes" for one in claimed)
        parts += [
            f"\n**{passed} of {len(claimed)} concepts pass** on `{MODEL}`: at equal KL, strength 1 "
            "moves the completions more than the strongest null, with an interval corrected over "
            "all of them, and its text holds together.",
            f"\n![strength 1 less the strongest null, by concept]({PLOT})\n",
            markdown_table(LIBRARY_HEAD, [_row(one) for one in claimed]),
            _counts(claimed),
            "## How it was measured\n",
            _how(claimed),
        ]
    else:
        parts.append("\nNo concept has been measured yet.\n")
    if left:
        parts.append(f"Not measured: {left}.\n")
    parts += [
        "## Again\n",
        f"```sh\nmlxsteer eval joyful -m {MODEL}   # one, beside the other vectors at hand\n"
        "make evidence    # all of them, if any vector is newer, beside all others, recipes too; "
        "then the gallery\nmake docs        # this page, the README's table, the cards\n```",
    ]
    return "\n".join(parts) + "\n"


def _row(one: Known) -> list[str]:
    assert one.claim is not None
    assert one.record is not None
    record, steered = one.record, condition(one.record, 1.0)
    three = [condition(record, 0.0), condition(record, 0.0, True), steered]
    effect = interval(steered.get("effect"))
    rule = record.get("rule")
    holds = {True: "yes", False: "NO"}.get(steered.get("coherent"), "-")  # type: ignore[arg-type]
    detected = [number(c.get("detected")) for c in three]
    counts = [mean(c.get("counts")) for c in three]
    return [
        f"[`{one.concept.name}`](../vectors/{one.concept.name}/README.md)",
        one.verdict,
        shown(one.claim.difference),
        inert(one.claim.null),
        shown(None if effect is None else effect.wrong_way, ".0%"),
        holds,
        shown(interval(steered.get("margin"))),
        "-" if None in detected else ", ".join(shown(d, ".0%") for d in detected),
        "-"
        if None in counts
        else f"{inert(str(rule))}: {', '.join(shown(c, '.2g') for c in counts)}",
        shown(interval(record.get("against_prompt"))),
        shown(number(record.get("tokens_saved")), ".0f"),
    ]


def _counts(claimed: Sequence[Known]) -> str:
    """Return what the table says in numbers: where asking wins, what knowledge is lost."""
    against = [interval((one.record or {}).get("against_prompt")) for one in claimed]
    margins = [interval(condition(one.record or {}, 1.0).get("margin")) for one in claimed]
    less = sum(found is not None and found.below for found in against)
    more = sum(found is not None and found.above for found in against)
    lost = sum(found is not None and found.below for found in margins)
    return (
        f"Asking in words surely does more than strength 1 for {less} of {len(claimed)} concepts, "
        f"surely less for {more}, by single 95% intervals. Strength 1 surely loses margin on plain "
        f"knowledge for {lost}.\n"
    )


def _how(claimed: Sequence[Known]) -> str:
    """Return how the concepts were measured, by the record of the first; a test holds all to it."""
    record = claimed[0].record or {}
    sizes = {key: number(value) or 0 for key, value in dict(record.get("settings", {})).items()}
    prompts = record.get("prompts", ())
    kinds = [null.get("kind") for null in nulls(record)]
    return (
        f"Per concept, {len(prompts)} prompts of the {inert(str(record.get('split')))} split, on "
        "topics that no vector was made from, are read and answered (greedily, "
        f"{sizes.get('tokens', 0):.0f} tokens) unsteered, asked for the concept in words, steered, "
        "and both. The score is the log-probability per token of an answer that shows the concept "
        "less that of one that does not, both written before any vector was judged; an effect is a "
        "score less that of the unsteered model. Nulls are brought to the KL of the vector on the "
        f"same {sizes.get('neutral', 0):.0f} neutral tokens: {kinds.count('other')} vectors of "
        f"other concepts, {kinds.count('refit')} refits with half of the pairs turned around, "
        f"{kinds.count('isotropic')} random directions. Intervals are percentiles of a paired "
        "bootstrap over prompts at 95%; those of the third column are corrected over the concepts "
        "(Holm). Text holds together if it does not loop more than the unsteered, is nearly as "
        "varied, and is likely under the model that was asked for the concept. Margin is the "
        "change of the log-probability per token of right answers over the best wrong ones, on "
        f"{sizes.get('questions', 0):.0f} multiple-choice questions. The concept shows in text "
        "where a probe on other topics says so; a dash: the probe cannot tell what the model "
        "writes when asked from its opposite (AUROC below 0.8). The rule counts words, words of a "
        "list, or sentiment.\n"
    )


def plot_library(library: Sequence[Known], path: Path) -> None:
    """Draw each concept's difference to the strongest null with its corrected interval."""
    claimed = [one for one in library if one.claim is not None]
    claimed.sort(key=lambda one: one.claim.difference.mean if one.claim else 0.0)
    with figure(path, 6.5, 1.0 + 0.24 * len(claimed)) as axes:
        for i, one in enumerate(claimed):
            assert one.claim is not None
            assert one.record is not None
            found, colour = one.claim.difference, COLOURS[0 if one.claim.passed else 1]
            axes.plot([found.low, found.high], [i, i], color=colour, linewidth=2)
            broken = condition(one.record, 1.0).get("coherent") is not True
            axes.plot([found.mean], [i], "x" if broken else "o", color=colour, markersize=5)
            asked = interval(condition(one.record, 0.0, True).get("effect"))
            steered = interval(condition(one.record, 1.0).get("effect"))
            if asked is not None and steered is not None:
                beside = asked.mean - steered.mean + found.mean
                axes.plot([beside], [i], "|", color=COLOURS[4], markersize=8)
        axes.axvline(0, color=COLOURS[4], linewidth=1)
        names = [f"{one.concept.name}: {one.verdict}" for one in claimed]
        axes.set_yticks(range(len(claimed)), names)
        axes.set_xlabel("strength 1 less the strongest null of the same KL, nats per token")
        axes.set_title(
            "dot: steered, Holm-corrected interval (x: text breaks)\nbar: asked in words",
            fontsize=9,
        )


# docs/gallery.md


def gallery_page(library: Sequence[Known], record: dict[str, Any]) -> str:
    """Return the page of what every vector makes the model write."""
    drawn, machine = record["figures"], record["machine"]
    versions = ", ".join(f"{name} {number_}" for name, number_ in machine["versions"].items())
    where = f"{machine['chip']}, {machine['cpu_cores']} CPU cores; {versions}"
    by_name = {one.concept.name: one for one in library}
    parts = [
        "# Gallery\n",
        f"What each vector of the library makes `{MODEL}` write at strength -1, 0 and 1: the same "
        f"prompts, greedy, {drawn['tokens']} tokens at most, all strengths of a concept in one "
        "batch. Nothing is picked; the prompts stand in no recipe. In brackets: what the concept's "
        "rule counts in the answer.\n",
        "`python bench/gallery.py --json bench/results/gallery.json` wrote the answers "
        f"({where}), `make docs` this page from them and from the vectors' evaluations.\n",
    ]
    for name, entry in drawn["concepts"].items():
        one = by_name[name]
        poles = f"Positive: {one.concept.positive}. Negative: {one.concept.negative}."
        title = f"## [{name}](../vectors/{name}/README.md)"
        parts += [f"{title}\n", f"{poles} {_figures(one)}\n", f"{answers(drawn, entry)}\n"]
    left = [one.concept.name for one in library if one.concept.name not in drawn["concepts"]]
    if left:
        parts.append(f"Without a vector, and so recipes only: {', '.join(left)}.\n")
    return "\n".join(parts)


def _figures(one: Known) -> str:
    """Return a vector's numbers in a line."""
    found = []
    if one.vector is not None and one.vector.calibration is not None:
        found.append(f"Layers {layers_of(one.vector)}, {one.vector.calibration['kl']:.2f} nats")
        if (safe := safe_range(one.vector)) is not None:
            found.append(f"safe strengths {strengths(safe)}")
    if one.claim is None:
        return f"{', '.join([*found, 'effect not measured'])}."
    rule = str((one.record or {}).get("rule") or "")
    text = f"strength 1 less the strongest null {shown(one.claim.difference)}: {one.verdict}"
    return f"{', '.join([*found, text])}." + (f" Rule: {inert(rule)}." if rule else "")


def block(name: str) -> re.Pattern[str]:
    """Return the pattern of a page's generated part."""
    return re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- end of {name} -->)", re.DOTALL)


def current(path: Path, name: str, text: str, write: bool) -> None:
    """Compare the block `name` of a page with `text`, after writing it if so asked."""
    if write:
        path.write_text(block(name).sub(lambda _: text, path.read_text()))
    found = block(name).search(path.read_text())
    assert found is not None, f"{path} has no block {name}"
    assert found[0] == text, "run make docs"


def current_page(path: Path, text: str | None, write: bool) -> None:
    """Compare a whole page with `text`, after writing it if so asked; None: there is no page."""
    if write and text is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert (path.read_text() if path.is_file() else None) == text, "run make docs"
