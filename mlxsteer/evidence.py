"""The evidence for a vector: what was measured, what follows, and how people read it.

`Evidence` is a frozen value that becomes JSON (`SCHEMA` is its version), a Markdown table, a
verdict in sentences and a plot of effect against strength. It measures nothing and knows no model.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .coherence import Coherence
from .report import COLOURS, figure, markdown_table
from .stats import Interval

__all__ = ["SCHEMA", "Condition", "Evidence", "NullScore", "draw", "markdown"]

SCHEMA = 1


@dataclass(frozen=True)
class Condition:
    """One way to get the concept, measured on all prompts.

    Attributes:
        strength: of the vector, 0 is unsteered; `asked`: whether words ask for the concept, too.
        scores: log-odds of positive over negative completions per prompt, nats per token.
        effect: scores less those of the baseline; None for the baseline itself.
        detected: the share of answers in which the probe sees the concept; None without a probe.
        counts: what the concept's rule counts in each answer; none without a rule.
        coherence, coherent: of the answers; whether they hold together beside the baseline's.
        kl: nats per response token on neutral prompts; None where words ask.
        margin: change of the capability margin, nats per token; None where it was not measured.
        prompt_tokens: mean length of a prompt.
        answers: what was written.
    """

    name: str
    strength: float
    asked: bool
    scores: tuple[float, ...]
    effect: Interval | None
    detected: float | None
    counts: tuple[float, ...]
    coherence: Coherence
    coherent: bool
    kl: float | None
    margin: Interval | None
    prompt_tokens: float
    answers: tuple[str, ...]

    @property
    def counted(self) -> float | None:
        """The mean of what the rule counts; None without a rule."""
        return sum(self.counts) / len(self.counts) if self.counts else None


@dataclass(frozen=True)
class NullScore:
    """A null at the cost of the vector at strength 1."""

    kind: str
    name: str
    kl: float
    scores: tuple[float, ...]
    effect: Interval


@dataclass(frozen=True)
class Evidence:
    """All that was measured of one vector on one split of its concept.

    Attributes:
        vector_sha256, model: what was judged, and on what.
        sentence: what a positive strength shall do.
        rule: what `counted` is, "" without one; `remarks`: what could not be measured, and why.
        conditions: baseline first, then prompted, steered by strength, and both.
        nulls: the strongest first.
        others: name and content_sha256 of every vector of another concept that was at hand; the
            nearest of them are nulls, so that with others the same vector is judged anew.
        against_null: strength 1 less the strongest null, per prompt; `beaten_p` is the largest p
            of all nulls, so that no choice among them flatters.
        against_prompt: strength 1 less the prompted model; `counted_against_prompt` is the same of
            what the rule counts, more being more of the concept; None without a rule.
        detector_auroc: on held-out topics; None if there was nothing to train on.
    """

    vector: str
    concept: str
    sentence: str
    vector_sha256: str
    model: str
    split: str
    prompts: tuple[str, ...]
    rule: str
    conditions: tuple[Condition, ...]
    nulls: tuple[NullScore, ...]
    others: tuple[tuple[str, str], ...]
    against_null: Interval
    beaten_p: float
    against_prompt: Interval
    counted_against_prompt: Interval | None
    detector_auroc: float | None
    settings: dict[str, Any]
    remarks: tuple[str, ...]

    def condition(self, strength: float, asked: bool = False) -> Condition:
        """Return the condition of a strength, with or without words that ask."""
        return next(c for c in self.conditions if (c.strength, c.asked) == (strength, asked))

    @property
    def effect(self) -> Interval:
        """The effect of strength 1."""
        effect = self.condition(1.0).effect
        assert effect is not None
        return effect

    @property
    def differences(self) -> tuple[float, ...]:
        """Strength 1 less the strongest null per prompt, for a correction over concepts."""
        pairs = zip(self.condition(1.0).scores, self.nulls[0].scores, strict=True)
        return tuple(ours - null for ours, null in pairs)

    @property
    def tokens_saved(self) -> float:
        """Prompt tokens that asking in words costs and steering does not."""
        return self.condition(0.0, True).prompt_tokens - self.condition(0.0).prompt_tokens

    @property
    def passed(self) -> bool:
        """Whether strength 1 does what the concept says, more than every null, coherently."""
        beats = self.against_null.above and self.beaten_p < self.against_null.alpha / 2
        return self.effect.above and beats and self.condition(1.0).coherent

    def verdict(self) -> tuple[str, ...]:
        """Return what follows, in sentences."""
        effect, one = self.effect, self.condition(1.0)
        null = self.nulls[0].name
        said = [f"{self.vector} {'PASSES' if self.passed else 'FAILS'} on {self.model}."]
        if effect.above:
            said.append(f"It moves the completions its way: {_interval(effect)} nats per token.")
        elif effect.below:
            said.append(f"It does the OPPOSITE of what it says: {_interval(effect)}.")
        else:
            said.append(
                f"It has no effect on the completions that can be told from 0: {_interval(effect)}."
            )
        said += self._opposite()
        beats = self.against_null.above and self.beaten_p < self.against_null.alpha / 2
        said.append(
            f"At equal KL it {'beats' if beats else 'does NOT beat'} the strongest of "
            f"{len(self.nulls)} nulls ({null}): {_interval(self.against_null)}."
        )
        if not one.coherent:
            said.append("At strength 1 its text does NOT hold together.")
        prompt = self.against_prompt
        if prompt.below:
            said.append(f"Asking in words does MORE: steering less asking is {_interval(prompt)}.")
        elif prompt.above:
            said.append(f"It does more than asking in words: {_interval(prompt)}.")
        else:
            said.append(f"Asking in words does about as much: {_interval(prompt)}.")
        if (counted := self.counted_against_prompt) is not None:
            more = "more of the concept than" if counted.above else "as much of the concept as"
            more = "LESS of the concept than" if counted.below else more
            asked = _number(self.condition(0.0, True).counted, ".3g")
            said.append(
                f"By the rule its text shows {more} that of asking: "
                f"{_number(one.counted, '.3g')} against {asked}."
            )
        if one.margin is not None and (one.margin.below or one.margin.above):
            change = "loses" if one.margin.below else "gains"
            said.append(f"Strength 1 {change} margin on plain knowledge: {_interval(one.margin)}.")
        saved = self.tokens_saved
        said.append(
            f"Steering saves {saved:.0f} prompt tokens."
            if saved > 0
            else "Asking in words makes no prompt longer here."
        )
        return tuple(said)

    def _opposite(self) -> list[str]:
        """Say what strength -1 does, if that was measured."""
        fits = (c.effect for c in self.conditions if (c.strength, c.asked) == (-1.0, False))
        effect = next(fits, None)
        if effect is None:
            return []
        does = "moves" if effect.below else "does NOT move"
        return [f"Strength -1 {does} them the other way: {_interval(effect)}."]

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain JSON."""
        record = dataclasses.asdict(self)
        more = {"passed": self.passed, "verdict": self.verdict(), "tokens_saved": self.tokens_saved}
        return {"schema": SCHEMA, **record, **more}


def _interval(x: Interval) -> str:
    return f"{x.mean:+.2f} [{x.low:+.2f}, {x.high:+.2f}]"


def _number(x: float | None, form: str = ".2f") -> str:
    return "" if x is None else f"{x:{form}}"


def markdown(evidence: Evidence) -> str:
    """Return verdict, table of conditions, table of nulls and remarks."""
    e = evidence
    head = ["condition", "log-odds", "less baseline", "wrong way", "detected", e.rule or "rule"]
    head += ["perplexity", "loops", "distinct-2", "coherent", "KL", "margin", "prompt tokens"]
    rows = []
    for c in e.conditions:
        effect = "" if c.effect is None else _interval(c.effect)
        wrong = "" if c.effect is None else f"{c.effect.wrong_way:.0%}"
        margin = "" if c.margin is None else _interval(c.margin)
        together = [_number(c.coherence.perplexity, ".1f"), f"{c.coherence.loop_rate:.0%}"]
        together += [_number(c.coherence.distinct_2), "yes" if c.coherent else "NO"]
        score = _number(sum(c.scores) / len(c.scores), "+.2f")
        measured = [_number(c.detected, ".0%"), _number(c.counted, ".3g")]
        cost = [_number(c.kl), margin, _number(c.prompt_tokens, ".0f")]
        rows.append([c.name, score, effect, wrong, *measured, *together, *cost])
    nulls = [[n.name, n.kind, _number(n.kl), _interval(n.effect)] for n in e.nulls]
    title = f"## {e.vector} on {e.model}\n\n{e.sentence}\n\n{' '.join(e.verdict())}\n\n"
    notes = "".join(f"- {remark}\n" for remark in e.remarks)
    table = markdown_table(["null", "kind", "KL", "log-odds less baseline"], nulls)
    return f"{title}{markdown_table(head, rows)}\n{table}" + (f"\n{notes}" if notes else "")


def draw(evidence: Evidence, path: Path) -> None:
    """Draw the effect against the strength, with the prompted model and the nulls beside it.

    Raises:
        MlxsteerError: matplotlib is not installed.
    """
    with figure(path, 6.0, 3.6) as axes:
        steered = sorted((c for c in evidence.conditions if not c.asked), key=lambda c: c.strength)
        x = [c.strength for c in steered]
        means = [c.effect.mean if c.effect else 0.0 for c in steered]
        low = [c.effect.low if c.effect else 0.0 for c in steered]
        high = [c.effect.high if c.effect else 0.0 for c in steered]
        axes.fill_between(x, low, high, color=COLOURS[0], alpha=0.2, linewidth=0)
        axes.plot(x, means, "o-", color=COLOURS[0], label=f"steered: {evidence.vector}")
        broken = [(c.strength, y) for c, y in zip(steered, means, strict=True) if not c.coherent]
        if broken:
            axes.plot(*zip(*broken, strict=True), "kx", ms=11, label="text does not hold together")
        asked = evidence.condition(0.0, True).effect
        if asked is not None:
            axes.axhline(asked.mean, color=COLOURS[1], ls="--", label="asked in words")
        for kind, colour in zip(("other", "refit", "isotropic"), COLOURS[2:], strict=True):
            some = [n.effect.mean for n in evidence.nulls if n.kind == kind]
            if some:
                axes.plot([1.0] * len(some), some, "_", color=colour, ms=12, label=f"null: {kind}")
        axes.set_xlabel("strength")
        axes.set_ylabel("log-odds less baseline (nats/token)")
        axes.set_title(f"{evidence.vector}, {evidence.model}, {evidence.split} split")
        axes.legend(fontsize=7)
