"""The study `steer_vs_prompt.py` as people read it: lines, a Markdown page, the README's block.

Everything is made from the record alone, and the sentences say what the intervals say: who does
more is counted with Holm's correction over the concepts.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlxsteer.library import concepts
from mlxsteer.report import markdown_table
from mlxsteer.stats import Interval, corrected, paired_bootstrap

__all__ = [
    "ONE",
    "PARTS",
    "Record",
    "effect",
    "judged",
    "page",
    "pooled",
    "readme",
    "said_of",
    "said_of_guide",
    "steered",
]

ONE = "last 1"  # of the guide's vectors, what is shown in a line
PARTS = ("effects", "fading", "saving", "guide")  # in this order; all but one have a plot

Record = dict[str, Any]
Scores = dict[str, list[float]]


def said_of(name: str, entry: Record) -> str:
    """Return a concept's figures in a line."""
    last = str(max(map(int, entry["scores"])))
    parts = [f"{arm} {_shown(effect(judged(entry), arm))}" for arm in ("asked", "steered", "both")]
    parts += [
        f"{arm} behind {last} turns {_shown(effect(entry['scores'][last], arm))}"
        for arm in ("asked", "steered")
    ]
    return f"{name}: {', '.join(parts)}"


def said_of_guide(entry: Record) -> str:
    """Return the style guide's figures in a line."""
    scores = entry["scores"]
    kl = [np.mean(entry["kl"][name]) for name in ("plain", ONE)]
    return (
        f"style guide: in context {_shown(effect(scores, 'guide'))}, as a vector "
        f"{_shown(effect(scores, ONE))}; KL from the guided {kl[0]:.2f} -> {kl[1]:.2f}"
    )


def judged(entry: Record) -> Scores:
    """Return the scores that a concept is judged by."""
    scores: Scores = entry["judged"]["scores"]
    return scores


def less(scores: Scores, arm: str, base: str = "plain") -> np.ndarray:
    """Return what an arm does per prompt, beyond another."""
    return np.array(scores[arm]) - np.array(scores[base])


def effect(scores: Scores, arm: str, base: str = "plain") -> Interval:
    """Return the mean of it with its interval."""
    return paired_bootstrap(less(scores, arm, base))


def pooled(record: Record, turns: int | str, arm: str, base: str = "plain") -> np.ndarray:
    """Return what an arm does behind some turns on all dev prompts of all concepts."""
    every = record["figures"]["concepts"].values()
    return np.concatenate([less(entry["scores"][str(turns)], arm, base) for entry in every])


def everywhere(record: Record, arm: str, base: str = "plain") -> Interval:
    """Return what an arm does on the prompts that the concepts are judged by."""
    every = record["figures"]["concepts"].values()
    return paired_bootstrap(np.concatenate([less(judged(e), arm, base) for e in every]))


def surely(record: Record, arm: str, base: str) -> list[str]:
    """Return the concepts in which an arm does more than another, Holm-corrected."""
    every = record["figures"]["concepts"]
    claims = {name: less(judged(entry), arm, base) for name, entry in every.items()}
    return [name for name, (_, stands) in corrected(claims).items() if stands]


def page(record: Record, plots: Sequence[Path] = ()) -> str:
    """Return the page; a plot, given relative to it, stands in the part of its name."""
    parts = ["# You could simply ask\n", _summary(record)]
    drawn = {path.stem: path for path in plots}
    for name, part in zip(PARTS, (_asking, _fading, _saving, _guide), strict=True):
        parts.append(part(record))
        if name in drawn:
            parts.append(f"![{name}]({drawn[name].as_posix()})\n")
    return "\n".join(parts)


def _summary(record: Record) -> str:
    m, model = record["machine"], record["model"]
    versions = ", ".join(f"{name} {number}" for name, number in m["versions"].items())
    entries = [*record["figures"]["concepts"].values(), record["figures"]["guide"]]
    chips, commits = (
        ", ".join(sorted({str(entry[name]) for entry in entries})) for name in ("chip", "commit")
    )
    rest = [found.name for found in concepts() if found.name not in record["figures"]["concepts"]]
    without = (
        f" Not studied, because they fail their evidence and ship no vector: {', '.join(rest)}."
    )
    return (
        "A sentence in the system message is the oldest way to steer a model. This page holds it "
        "against a vector at strength 1, and both against the model as it is. `make docs` writes "
        "it from `bench/results/steer_vs_prompt.json`, which `make study` measures.\n\n"
        f"{model['repo']} ({model['quantization']} as stored, computed in {model['dtype']}) on "
        f"{chips}, {m['cpu_cores']} CPU cores, {m['system']}, device {m['device']}; "
        f"{versions}; commit {commits}. It is one small model; a larger one follows instructions "
        f"better.{without if rest else ''}\n\n"
        "The score is that of `mlxsteer eval`: nats per token by which the model prefers the "
        "answer that has the concept, of two that were written beforehand. An effect is the score "
        "less that of the model which was neither asked nor steered, read behind the same talk; "
        "brackets are 95% intervals over prompts.\n"
    )


def _asking(record: Record) -> str:
    every = record["figures"]["concepts"]
    rows = []
    for name, entry in every.items():
        scores = judged(entry)
        detected = [entry["judged"]["detected"][arm] for arm in ("asked", "steered")]
        rows.append(
            [
                name,
                *(_shown(effect(scores, arm)) for arm in ("asked", "steered", "both")),
                _shown(effect(scores, "steered", "asked")),
                " / ".join("" if d is None else f"{d:.0%}" for d in detected).strip(" /"),
                entry["judged"]["split"],
            ]
        )
    means = [everywhere(record, arm) for arm in ("asked", "steered", "both")]
    apart = everywhere(record, "steered", "asked")
    rows.append(["all", *map(_shown, means), _shown(apart), "", ""])
    head = ["concept", "asked", "steered", "both", "steered less asked"]
    head += ["detected in text, asked / steered", "split"]
    return (
        "## Asking, steering, both\n\n"
        f"{counted(record)} {_both(record)}\n\n"
        "Asking is the recipe's positive instruction as the system message: the words that the "
        "vector was made from. Where a concept has an evaluation, the figures are those of its "
        "test split, which `mlxsteer eval` alone reads, and the share of written answers in which "
        "a probe sees the concept; else they are of the dev split.\n\n"
        f"{markdown_table(head, rows)}"
    )


def counted(record: Record) -> str:
    """Return in a sentence who does more, in how many concepts."""
    count = len(record["figures"]["concepts"])
    asked, steered = surely(record, "asked", "steered"), surely(record, "steered", "asked")
    rest = count - len(asked) - len(steered)
    return (
        f"Of {count} concepts asking does more in {_named(asked)}, steering in {_named(steered)}; "
        f"in {rest} the two cannot be told apart (Holm-corrected over the concepts)."
    )


def _both(record: Record) -> str:
    said = []
    for one in ("asked", "steered"):
        more, other = surely(record, "both", one), surely(record, one, "both")
        word = "asking" if one == "asked" else "steering"
        said.append(f"more than {word} alone in {len(more)} and less in {len(other)}")
    return f"Both at once do {', '.join(said)}."


def _fading(record: Record) -> str:
    turns, arms = record["figures"]["turns"], ("asked", "steered")
    last = turns[-1]
    began = [paired_bootstrap(pooled(record, 0, arm)) for arm in arms]
    rows = []
    for count in turns:
        cells = []
        for arm, start in zip(arms, began, strict=True):
            here = paired_bootstrap(pooled(record, count, arm))
            left = f", {here.mean / start.mean:.0%}" if start.above else ""
            cells.append(f"{_shown(here)}{left}")
        apart = paired_bootstrap(pooled(record, count, "steered", "asked"))
        rows.append([str(count), *cells, _shown(apart)])
    head = ("turns between", "asked, share left", "steered, share left", "steered less asked")
    places = [*((arm, count) for arm in arms for count in (0, last)), ("asked again", last)]
    each = [
        [name, *(f"{less(e['scores'][str(n)], arm).mean():+.2f}" for arm, n in places)]
        for name, e in record["figures"]["concepts"].items()
    ]
    again = paired_bootstrap(pooled(record, last, "asked again"))
    return (
        "## A long conversation\n\n"
        f"{faded(record, 'asked')} {faded(record, 'steered')} {_after(record)} "
        f"Who asks once more behind the last prompt gets {_shown(again)} there.\n\n"
        "The words stand where the conversation begins, the vector acts on every token, and "
        "between them and the scored answer lie turns of plain talk that neither asks for nor "
        "shows the concept (`bench/conversation.jsonl`, begun at another turn for each concept). "
        "This is the hard case: in a real conversation the model's own answers show the concept. "
        f"{len(pooled(record, 0, 'asked'))} prompts of the dev splits, all concepts pooled; below, "
        "the mean per concept, whose few prompts give no interval.\n\n"
        f"{markdown_table(head, rows)}\n"
        f"{markdown_table(('concept', *(f'{arm}, {n} turns' for arm, n in places)), each)}"
    )


def faded(record: Record, arm: str) -> str:
    """Return in a sentence what the turns leave of an arm's effect."""
    last = record["figures"]["turns"][-1]
    before, after = (pooled(record, count, arm) for count in (0, last))
    change, word = paired_bootstrap(after - before), "asking" if arm == "asked" else "steering"
    moved = f"from {before.mean():+.2f} to {after.mean():+.2f} nats per token"
    if change.below:
        return f"Behind {last} turns the effect of {word} falls {moved} ({_shown(change)})."
    if change.above:
        return f"Behind {last} turns the effect of {word} grows {moved} ({_shown(change)})."
    return f"Behind {last} turns the effect of {word} goes {moved}, no sure change."


def _after(record: Record) -> str:
    last = record["figures"]["turns"][-1]
    apart = paired_bootstrap(pooled(record, last, "steered", "asked"))
    if apart.above:
        return f"There steering does more than asking: {_shown(apart)}."
    if apart.below:
        return (
            f"There asking still does more than steering: {_shown(apart)} (steering less asking)."
        )
    return f"There the two cannot be told apart: {_shown(apart)} (steering less asking)."


def _saving(record: Record) -> str:
    rows = [
        [name, str(entry["words"]), *_saved(entry["first_token"])]
        for name, entry in record["figures"]["concepts"].items()
    ]
    guided = record["figures"]["guide"]
    rows.append(["a style guide", str(guided["words"]), *_saved(guided["first_token"])])
    head = ["", "tokens of the words", "more in the prompt", "first token, asked / steered"]
    head.append("asked takes, times as long")
    return (
        "## What the words cost\n\n"
        "A vector takes no place in the context. What asking adds to a prompt is less than its "
        "words where they replace the system message that the model's chat template puts there "
        "otherwise, as SmolLM2's does; it is paid with every turn that is read anew, and held in "
        "the cache where it is not. Times are until the first token of a prompt of median length, "
        f"in turns in one process, as a ratio of medians.\n\n{markdown_table(head, rows)}"
    )


def _saved(found: Record) -> list[str]:
    more = found["asked_tokens"] - found["steered_tokens"]
    times = f"{found['base_seconds'] * 1000:.0f} ms / {found['seconds'] * 1000:.0f} ms"
    return [f"{more:+d}", times, f"{found['ratio']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"]


def _guide(record: Record) -> str:
    entry = record["figures"]["guide"]
    scores, kl, vectors = entry["scores"], entry["kl"], entry["vectors"]
    names = {"plain": "neither", "guide": "guide in context", "both": "both, vector (last) at 1"}
    names |= {n: f"vector ({n.replace(' ', ') at ')}" for n in steered(record)}
    names |= {n: f"vector of `{n}` at 1" for n in entry["others"]}
    rows = []
    for name, shown in names.items():
        done = "" if name == "plain" else _shown(effect(scores, name))
        apart = f"{np.mean(kl[name]):.2f}" if name in kl else "0" if name == "guide" else ""
        near = _shown(_nearer(entry, name)) if name in kl and name != "plain" else ""
        rows.append([shown, done, apart, near])
    head = ("", "effect on the answers", "KL from the guided model", "nearer than neither")
    answers = [
        [one["prompt"], *(one[name] for name in ("plain", "guide", ONE))]
        for one in entry["answers"]
    ]
    columns = ("prompt", "neither", "guide in context", "vector (last) at 1")
    layers = vectors["last"]["layers"]
    return (
        "## A style guide in one vector\n\n"
        f"{guide_said(record)}\n\n"
        f"`bench/style_guide.md`, {entry['words']} tokens of rules, is the system message, and a "
        "vector is the mean difference of what is read with it and without, on layers "
        f"{layers[0]} to {layers[-1]}: at the last token of {vectors['last']['pairs']} prompts, as "
        f"every other (last), or over {vectors['response']['pairs']} answers that are the same on "
        "both sides (response). The effect is measured on "
        f"{len(scores['plain'])} prompts of their own with an answer in the guide's style and one "
        "in another (`bench/style_guide.jsonl`), the KL per token on what the model writes "
        f"greedily with the guide in context ({entry['kl_tokens']} tokens, {len(kl['plain'])} "
        "prompts). Strength 1 costs half a nat, whatever the guide itself moves. Vectors of other "
        "concepts cost as much and show what any change does.\n\n"
        f"{markdown_table(head, rows)}\n{markdown_table(columns, answers)}"
    )


def steered(record: Record, how: str = "") -> list[str]:
    """Return the names of the guide's vectors with their strengths, of one way to read or all."""
    entry = record["figures"]["guide"]
    ways = [how] if how else list(entry["vectors"])
    return [name for name in entry["kl"] if name.split()[0] in ways]


def _nearer(entry: Record, name: str) -> Interval:
    """Return by how much a vector brings the model nearer to the guided one, nats per token."""
    return paired_bootstrap(np.array(entry["kl"]["plain"]) - np.array(entry["kl"][name]))


def guide_said(record: Record) -> str:
    """Return in sentences what the vector has of the guide."""
    entry = record["figures"]["guide"]
    scores, kl = entry["scores"], {name: float(np.mean(v)) for name, v in entry["kl"].items()}
    apart, far = effect(scores, ONE, "guide"), _nearer(entry, ONE)
    more = "less than" if apart.below else "more than" if apart.above else "about as much as"
    way = "nearer to" if far.above else "farther from" if far.below else "no nearer to"
    names = steered(record)
    best = min(names, key=lambda name: kl[name])
    how, strength = best.split()
    said = (
        f"On answers in its style the guide's vector at 1 does {more} the guide in context: "
        f"{_shown(effect(scores, ONE))} against {_shown(effect(scores, 'guide'))}. It brings the "
        f"model's next tokens {way} those under the guide: KL {kl['plain']:.2f} without, "
        f"{kl[ONE]:.2f} with it. "
    )
    if _nearer(entry, best).above:
        said += (
            f"The nearest of {len(names)} ({how}, at {strength}) takes "
            f"{1 - kl[best] / kl['plain']:.0%} of that KL away, with an effect on the answers of "
            f"{_shown(effect(scores, best))}."
        )
    else:
        said += f"None of {len(names)} ways to read and strengths surely brings them nearer."
    rivals = [name for name in entry["others"] if effect(scores, name, ONE).above]
    if rivals:
        named = " and ".join(f"`{name}` ({_shown(effect(scores, name))})" for name in rivals)
        said += f" More than the guide's own vector does on these answers: that of {named}."
    return said


def readme(record: Record | None) -> str:
    """Return the README's block; None is no record yet."""
    if record is None:
        return "Not measured yet for these vectors: `make study` does it.\n"
    figures, last = record["figures"], record["figures"]["turns"][-1]
    entry, every = figures["guide"], figures["concepts"].values()
    more = [e["first_token"]["asked_tokens"] - e["first_token"]["steered_tokens"] for e in every]
    saved, plain = np.mean([e["words"] for e in every]), entry["first_token"]
    rows = [
        [
            f"effect on the answers of {len(every)} concepts",
            *(_shown(everywhere(record, arm)) for arm in ("asked", "steered", "both")),
        ],
        [
            f"behind {last} turns of plain talk",
            *(_shown(paired_bootstrap(pooled(record, last, a))) for a in ("asked", "steered")),
            "",
        ],
        [
            f"a style guide of {entry['words']} tokens",
            *(_shown(effect(entry["scores"], arm)) for arm in ("guide", ONE, "both")),
        ],
    ]
    return (
        f"{markdown_table(('nats per token', 'asked in words', 'steered at 1', 'both'), rows)}\n"
        f"{counted(record)} {guide_said(record)} Asking takes {saved:.0f} tokens of words "
        f"({np.mean(more):+.0f} in SmolLM2's prompts, whose system message they replace); with the "
        f"guide the first token takes {plain['ratio']:.1f} [{plain['low']:.1f}, "
        f"{plain['high']:.1f}] times as long.\n\n"
        "![effect of asking and of steering behind more and more turns of talk]"
        "(docs/prompting/fading.png)\n\nEvery concept, what the words cost, and where asking wins: "
        "[docs/prompting.md](docs/prompting.md), measured by `make study`.\n"
    )


def _shown(x: Interval) -> str:
    return f"{x.mean:+.2f} [{x.low:+.2f}, {x.high:+.2f}]"


def _named(names: Sequence[str]) -> str:
    return f"{len(names)} ({', '.join(names)})" if names else "none"
