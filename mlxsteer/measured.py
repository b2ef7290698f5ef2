"""The evidence for a vector in Markdown, as cards, the library's page and the README show it.

What was not measured is a dash. Text of others is inert: no HTML, no links, no Markdown of theirs.
It knows nothing of files and draws no conclusion of its own.
"""

import re

from .claims import Record, condition, conditions, interval, number
from .report import markdown_table
from .stats import Interval
from .values import printable
from .vector import Vector

__all__ = [
    "answers",
    "inert",
    "layers_of",
    "mean",
    "safe_range",
    "said",
    "shown",
    "strengths",
    "table",
]

LONGEST = 600  # characters of an answer
NONE = "-"


def inert(text: str) -> str:
    """Return one line in which nothing is HTML, a link or other Markdown."""
    line = re.sub(r"[&<>`*\[\]|\\]", lambda found: f"&#{ord(found[0])};", printable(text))
    return re.sub(r"(?i)(?<=[a-z]):(?=\S)|(?<=www)\.", lambda found: f"&#{ord(found[0])};", line)


def shown(value: Interval | float | None, form: str = "+.2f") -> str:
    """Return a figure, an interval behind its mean."""
    if isinstance(value, Interval):
        return f"{value.mean:{form}} [{value.low:{form}}, {value.high:{form}}]"
    return NONE if value is None else f"{value:{form}}"


def said(record: Record) -> str:
    """Return the verdict's sentences."""
    verdict = record.get("verdict")
    sentences = verdict if isinstance(verdict, (list, tuple)) else ()
    return " ".join(inert(str(sentence)) for sentence in sentences)


def table(record: Record) -> str:
    """Return a row per condition: what it does, what shows in its text and what it costs; "" where
    nothing was measured.
    """
    rule = record.get("rule")
    counts = inert(rule) if isinstance(rule, str) and rule else ""
    head = ["condition", "effect [95%], nats per token", "wrong way", "detected"]
    head += [counts] * bool(counts)
    head += ["KL, nats", "holds together", "margin", "prompt tokens"]
    rows = [_row(one, bool(counts)) for one in conditions(record)]
    return markdown_table(head, rows) if rows else ""


def _row(one: Record, counted: bool) -> list[str]:
    effect = interval(one.get("effect"))
    wrong = None if effect is None else effect.wrong_way
    holds = {True: "yes", False: "no"}.get(one.get("coherent"), NONE)  # type: ignore[arg-type]
    row = [inert(str(one.get("name", ""))), shown(effect), shown(wrong, ".0%")]
    row += [shown(number(one.get("detected")), ".0%")]
    row += [shown(mean(one.get("counts")), ".3g")] * counted
    row += [shown(number(one.get("kl")), ".2f"), holds, shown(interval(one.get("margin")))]
    return [*row, shown(number(one.get("prompt_tokens")), ".0f")]


def mean(values: object) -> float | None:
    """Return the mean of a list of numbers, None for anything else."""
    found = [number(value) for value in values] if isinstance(values, (list, tuple)) else []
    whole = [value for value in found if value is not None]
    return sum(whole) / len(whole) if whole and len(whole) == len(found) else None


def answers(record: Record) -> str:
    """Return what was written to the first prompt at strength -1, 0 and 1; "" without any."""
    prompts = record.get("prompts")
    rows = []
    for strength in (-1.0, 0.0, 1.0):
        written = condition(record, strength).get("answers")
        if isinstance(written, (list, tuple)) and written:
            rows.append([f"{strength:+g}" if strength else "0", inert(str(written[0])[:LONGEST])])
    if not rows or not isinstance(prompts, (list, tuple)) or not prompts:
        return ""
    return f"Asked: {inert(str(prompts[0]))}\n\n{markdown_table(['strength', 'answer'], rows)}"


def layers_of(vector: Vector) -> str:
    """Return the layers of a vector in words."""
    first, last = vector.layers[0], vector.layers[-1]
    if vector.layers == tuple(range(first, last + 1)):
        return f"{first}" if first == last else f"{first} to {last}"
    return ", ".join(map(str, vector.layers))


def safe_range(vector: Vector) -> tuple[float, float] | None:
    """Return the strengths between which its text was found to hold together, if that was
    measured.
    """
    safe = (vector.calibration or {}).get("safe")
    try:
        low, high = (number(safe[key]) for key in ("low", "high"))  # type: ignore[index]
    except (KeyError, TypeError):
        return None
    return None if low is None or high is None else (low, high)


def strengths(safe: tuple[float, float] | None) -> str:
    """Return a range of strengths in words."""
    return NONE if safe is None else f"{safe[0]:g} to {safe[1]:g}"
