"""Evidence for a vector, without a judge model: does it do what its concept says, more than vectors
of the same cost, in text that holds together, and would asking in words not do as well?

The same held-out prompts are read and answered unsteered, asked in words, steered at `STRENGTHS`,
the other way too, and both. The primary score is that of `scoring`, on completions written before
any vector was judged; `nulls` says what has to be beaten at equal KL. Answers are greedy, so that
conditions differ in nothing else. The test split is read here and nowhere else: whoever tunes says
`split="dev"`.

It knows nothing of files, of the terminal or of how a vector was found.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import mlx.nn as nn
import numpy as np

from .answers import Written, means, read_coherence, write
from .capability import read_questions
from .capture import capture
from .completions import Completion
from .counting import count, missing
from .detection import Detector, by_topic
from .errors import MlxsteerError, UsageError
from .evidence import Condition, Evidence, NullScore
from .extract import model_ref
from .library import Concept
from .meter import Meter
from .neutral import Neutral
from .nulls import Null, equalised, isotropic, nearest, refits
from .progress import Progress, silent
from .prompts import Recipe, Side, spread
from .reading import read_sides
from .runtime import check_steering
from .scoring import LogOdds, Margins, prompted
from .state import OFF
from .stats import Interval, paired_bootstrap
from .steering import Steering
from .trials import check
from .vector import Vector

__all__ = ["FULL", "QUICK", "STRENGTHS", "Size", "evaluate"]

STRENGTHS = (-1.0, 0.5, 1.0, 1.5)
ONE = "steered 1"
SLOPE = 2.1  # of log KL over log scale where nulls end, on SmolLM2; it saves passes, no more
LEAST_STEP = 0.02  # of the log of their scale: nulls begin near their end
LEAST_KL = 0.01  # nats: what moves the model less cannot be judged


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        prompts: held-out prompts, at most; `tokens`: of a written answer.
        questions: of the capability set; `neutral`: response tokens behind every KL.
        probe: training prompts behind the detector; 0 is no detector.
        refits, isotropic, others: nulls of each kind, at most; of the others the nearest.
    """

    prompts: int = 24
    tokens: int = 24
    questions: int = 130
    neutral: int = 256
    probe: int = 24
    refits: int = 8
    isotropic: int = 2
    others: int = 8


FULL = Size()
QUICK = Size(8, 16, 24, 96, 0, 3, 1, 2)


@dataclass(frozen=True)
class _Plan:
    """One condition to be measured."""

    name: str
    strength: float
    asked: bool
    steering: Steering


def evaluate(
    model: nn.Module,
    tokenizer: Any,
    vector: Vector,
    concept: Concept,
    *,
    others: Sequence[Vector] = (),
    split: str = "test",
    size: Size = FULL,
    progress: Progress = silent,
) -> Evidence:
    """Return what a vector does on the held-out prompts of a concept.

    Args:
        vector: of op `add`; strength 1 of it sets the cost of all nulls.
        others: vectors of other concepts for the same model.
        split: `test`, or `dev` while something is still being chosen.

    Raises:
        MlxsteerError: a concept without recipe or completions, a chat template that refuses its
            instruction, a vector that does not move the model, nulls that cannot cost as much.
        UsageError: an unknown split, a vector that does not add.
    """
    recipe, completions = check(concept, split)
    completions = spread(completions, size.prompts)
    if vector.op != "add":
        raise UsageError(f"vector {vector.name!r} has op {vector.op}: only what adds is judged")
    if vector.is_zero:
        raise MlxsteerError(f"vector {vector.name!r} is zero: no strength of it does anything")
    rivals = nearest(vector, others, size.others)
    check_steering(model, Steering((vector, 1.0), *((v, 1.0) for v in rivals)))
    firsts = [v.layers[0] for v in (vector, *rivals)]
    plain = LogOdds(model, tokenizer, completions, first=firsts)
    asked = LogOdds(model, tokenizer, completions, recipe=recipe, first=vector.layers[0])
    remarks: list[str] = []

    text = Neutral.kept(model, tokenizer, min_tokens=size.neutral, progress=progress)
    meter = Meter(model, text, firsts)
    kls = {s: meter(Steering((vector, s))) for s in STRENGTHS}
    if not LEAST_KL <= kls[1.0] < float("inf"):
        raise MlxsteerError(
            f"vector {vector.name!r} at strength 1 moves the model by {kls[1.0]:.2g} nats per "
            "token, which cannot be judged: mlxsteer calibrate gives it a strength, if it has one"
        )
    if not vector.calibrated:
        remarks.append(f"The vector is not calibrated: strength 1 costs {kls[1.0]:.2f} nats.")

    plans = [_Plan("baseline", 0.0, False, OFF), _Plan("asked in words", 0.0, True, OFF)]
    plans += [_Plan(f"steered {s:g}", s, False, Steering((vector, s))) for s in STRENGTHS]
    plans += [_Plan("asked and steered 1", 1.0, True, Steering((vector, 1.0)))]
    scores = []
    for i, plan in enumerate(plans):
        progress("scoring completions", i, len(plans))
        scores.append((asked if plan.asked else plain)(plan.steering))
    progress("scoring completions", len(plans), len(plans))
    base = scores[0]

    nulls = _nulls(model, tokenizer, vector, concept, rivals, meter, kls[1.0], size, progress)
    judged = []
    for i, null in enumerate(nulls):
        progress("scoring nulls", i, len(nulls))
        found = plain(null.steering)
        effect = paired_bootstrap(found - base)
        judged.append(NullScore(null.kind, null.name, null.kl, _floats(found), effect))
    progress("scoring nulls", len(nulls), len(nulls))
    judged.sort(key=lambda n: -n.effect.mean)
    remarks.append(f"Nulls of other concepts: {len(rivals)}, the nearest of {len(others)} at hand.")

    margin = _margin(model, tokenizer, vector, size.questions, progress)
    written = _written(model, tokenizer, plans, completions, recipe, size, progress)
    texts = [one.prompt for one in completions]
    in_words: list[Side] = [prompted(recipe, text) for text in texts]
    together = read_coherence(model, tokenizer, in_words, written, progress)
    detector = _detector(model, tokenizer, concept, recipe, size, progress)
    if detector is not None and not detector.admitted:
        remarks.append(
            f"The detector is not admitted (AUROC {detector.auroc:.2f} on held-out topics): what "
            "the model writes when asked in words cannot be told from its opposite."
        )
    detected: list[float | None] = [None] * len(plans)
    if detector is not None and detector.admitted:
        detected = [detector.share(some) for some in means(model, tokenizer, texts, written)]
    rule = concept.rule
    if rule is not None and (package := missing(rule)) is not None:
        remarks.append(f"Sentiment was not counted: {package} is not installed.")
        rule = None

    conditions = [
        Condition(
            name=plan.name,
            strength=plan.strength,
            asked=plan.asked,
            scores=_floats(scores[i]),
            effect=paired_bootstrap(scores[i] - base) if i else None,
            detected=detected[i],
            counts=tuple(count(rule, w.text) for w in written[i]) if rule else (),
            coherence=together[i],
            coherent=together[i].holds(together[0]),
            kl=None if plan.asked else kls.get(plan.strength, 0.0),
            margin=margin if plan.name == ONE else None,
            prompt_tokens=float(np.mean([w.prompt_tokens for w in written[i]])),
            answers=tuple(w.text for w in written[i]),
        )
        for i, plan in enumerate(plans)
    ]
    at = [plan.name for plan in plans].index(ONE)
    one, counted = scores[at], None
    if rule is not None:
        ours, theirs = (np.array(conditions[i].counts) for i in (at, 1))
        counted = paired_bootstrap(rule.sign * (ours - theirs))
    return Evidence(
        vector=vector.name,
        concept=concept.name,
        sentence=concept.sign,
        vector_sha256=vector.content_sha256,
        model=model_ref(model).repo or model_ref(model).model_type,
        split=split,
        prompts=tuple(c.prompt for c in completions),
        rule="" if rule is None else f"{rule.kind} ({'more' if rule.sign > 0 else 'less'} is more)",
        conditions=tuple(conditions),
        nulls=tuple(judged),
        others=tuple(sorted((v.name, v.content_sha256) for v in others)),
        against_null=paired_bootstrap(one - np.array(judged[0].scores)),
        beaten_p=max(paired_bootstrap(one - np.array(n.scores)).p for n in judged),
        against_prompt=paired_bootstrap(one - scores[1]),
        counted_against_prompt=counted,
        detector_auroc=None if detector is None else detector.auroc,
        settings={**asdict(size), "neutral_sha256": text.sha256, "calibrated": vector.calibrated},
        remarks=tuple(remarks),
    )


def _floats(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(v) for v in values)


def _nulls(
    model: nn.Module,
    tokenizer: Any,
    vector: Vector,
    concept: Concept,
    rivals: Sequence[Vector],
    meter: Meter,
    kl: float,
    size: Size,
    progress: Progress,
) -> list[Null]:
    """Return all nulls at the cost `kl`."""
    sides: dict[str, np.ndarray] = {}
    readings = read_sides(model, tokenizer, concept.pairs(), progress=progress)
    for which, reading in readings.items():
        sides[which] = capture(
            model,
            reading.sequences,
            sites=(vector.site,),
            layers=vector.layers,
            positions=reading.positions,
            progress=progress,
            stage=f"reading {which} prompts",
        )[vector.site]
    wanted = [("other", v) for v in rivals]
    positive, negative = sides["positive"], sides["negative"]
    wanted += [("refit", v) for v in refits(positive, negative, vector, size.refits)]
    wanted += [("isotropic", v) for v in isotropic(vector, size.isotropic)]
    found = []
    for i, (kind, null) in enumerate(wanted):
        progress("bringing nulls to equal KL", i, len(wanted))
        found.append(equalised(meter, kind, null, kl, slope=SLOPE, least_step=LEAST_STEP))
    progress("bringing nulls to equal KL", len(wanted), len(wanted))
    return found


def _margin(
    model: nn.Module, tokenizer: Any, vector: Vector, questions: int, progress: Progress
) -> Interval:
    """Return how strength 1 changes the margins of the capability questions."""
    stage = "asking questions"
    progress(stage, 0, 2)
    margins = Margins(model, tokenizer, spread(read_questions(), questions), first=vector.layers[0])
    before = margins(OFF)
    progress(stage, 1, 2)
    change = margins(Steering((vector, 1.0))) - before
    progress(stage, 2, 2)
    return paired_bootstrap(change)


def _written(
    model: nn.Module,
    tokenizer: Any,
    plans: Sequence[_Plan],
    completions: Sequence[Completion],
    recipe: Recipe,
    size: Size,
    progress: Progress,
) -> list[list[Written]]:
    """Return the answers of every condition to every prompt."""
    wanted: list[list[tuple[Side, Steering]]] = [
        [
            (prompted(recipe, one.prompt) if plan.asked else one.prompt, plan.steering)
            for one in completions
        ]
        for plan in plans
    ]
    return write(model, tokenizer, wanted, size.tokens, progress=progress)


def _detector(
    model: nn.Module,
    tokenizer: Any,
    concept: Concept,
    recipe: Recipe,
    size: Size,
    progress: Progress,
) -> Detector | None:
    """Return a probe trained on what the model writes when it is asked in words."""
    learn, tried = by_topic(concept.prompts, size.probe)
    if len(learn) < 2 or not tried:
        return None
    texts, stage = [*learn, *tried], "writing for the detector"
    instructions = (recipe.positive, recipe.negative)
    wanted = [[(recipe.side(text, said), OFF) for text in texts] for said in instructions]
    written = write(model, tokenizer, wanted, size.tokens, progress=progress, stage=stage)
    features = means(model, tokenizer, texts, written)
    train = [some[: len(learn)] for some in features]
    held_out = [some[len(learn) :] for some in features]
    return Detector.fit((train[0], train[1]), (held_out[0], held_out[1]))
