"""The run: which cases meet which work, in what order, and what is asserted before the clock runs.

Before anything is timed, the idle view must give the plain model's logits bit for bit. Rows arrive
one by one, so that an interrupted run keeps what is done. It knows nothing of files and terminals.
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..backend import peak_memory
from ..errors import MlxsteerError, UsageError
from ..progress import Progress, silent
from .cases import Case, captured, plain, steered, vectors
from .machine import machine
from .measure import Block, Patience, Ratio, interleaved, nodes
from .peers import plain_peer, slow_tap, theirs, tiny, wrapped
from .results import Kind, Results, Row
from .works import CHUNK, Decoder, Side, Work, read

__all__ = ["Plan", "run"]

TINY = Work("decode", 16)
STAGE = "comparisons"
ROOM = 64  # tokens that must fit behind the longest context


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        cases: of `CASES`.
        contexts: tokens of the prompts; the first is that of most cases, of batches and of peers.
        batches: rows; 1 is measured with all cases, more with `add-1` and `rows`.
        prefill: whether prompts are timed, too.
        peers: whether mlx-lm's own class is, and captures.
        patience: how long a comparison may take.
    """

    cases: Sequence[Case]
    contexts: Sequence[int] = (128, 1024, 4096)
    batches: Sequence[int] = (1, 4, 8, 16)
    prefill: bool = True
    peers: bool = True
    patience: Patience = field(default_factory=Patience)

    def works(self) -> list[tuple[Work, list[Case]]]:
        """Return what is done, and with which cases."""
        first, *longer = self.contexts
        kinds: tuple[Kind, ...] = ("decode", "prefill") if self.prefill else ("decode",)
        single = [case for case in self.cases if not case.rows]
        found: list[tuple[Work, list[Case]]] = []
        if 1 in self.batches:
            found += [(Work(kind, first), single) for kind in kinds]
            for context in longer:  # which is read once for both kinds
                works = [Work(kind, context, behind=kind == "prefill") for kind in kinds]
                found += [(work, [case]) for case in single if case.every for work in works]
        for batch in self.batches:
            if batch > 1:
                both = [case for case in self.cases if case.rows or case.name == "add-1"]
                found.append((Work("decode", first, batch), both))
        return [(work, cases) for work, cases in found if cases]

    def check(self, model: nn.Module) -> None:
        """Refuse what the model cannot do.

        Raises:
            UsageError: a context beyond the model's, or nothing to measure.
        """
        longest = getattr(model.args, "max_position_embeddings", None)
        if longest is not None and max(self.contexts) + ROOM > longest:
            raise UsageError(
                f"a context of {max(self.contexts)} is too long: the model holds {longest} tokens "
                "with those that are written; name shorter ones with --context"
            )
        if not self.works():
            raise UsageError("nothing is left to measure: a case of rows needs a --batch above 1")

    def settings(self) -> dict[str, Any]:
        """Return the plan as a result records it."""
        return {
            "cases": [case.name for case in self.cases],
            "contexts": list(self.contexts),
            "batches": list(self.batches),
            **asdict(self.patience),
        }


def run(
    model: nn.Module,
    plan: Plan,
    *,
    load_seconds: float,
    found: Callable[[Results], None] = lambda results: None,
    progress: Progress = silent,
) -> Results:
    """Measure and return everything.

    Args:
        model: with its `source`, as `load` gives it.
        load_seconds: what loading took.
        found: told after every row, so that an interrupted run loses nothing.

    Raises:
        UsageError: a plan that the model cannot do.
        MlxsteerError: the idle view is not the plain model, bit for bit.
    """
    plan.check(model)
    results = Results(machine(), asdict(model.source), plan.settings(), round(load_seconds, 2))
    bench = _Bench(model, plan)
    jobs = bench.jobs()
    progress(STAGE, 0, len(jobs))
    for i, job in enumerate(jobs):
        results.rows.append(job())
        results.partial = i + 1 < len(jobs)
        found(results)
        progress(STAGE, i + 1, len(jobs))
    return results


class _Bench:
    """The jobs of a run over one model, each a comparison; bases are shared by their cases."""

    def __init__(self, model: nn.Module, plan: Plan) -> None:
        self.model, self.plan = model, plan
        self.vectors = vectors(model)
        self.vocabulary = model.args.vocab_size
        self.read: dict[str, tuple[object, Decoder]] = {}

    def jobs(self) -> list[Callable[[], Row]]:
        """Return every comparison; the first ones look whether the instrument can see."""
        jobs = self._controls()
        for work, cases in self.plan.works():
            jobs += [partial(self._case, work, case) for case in cases]
        if self.plan.peers:
            jobs += self._peers()
        return jobs

    def _controls(self) -> list[Callable[[], Row]]:
        def slow() -> Row:
            model = tiny()
            return self._control("slow-tap", "a tap made slow on purpose", model, slow_tap(model))

        def naive() -> Row:
            model = tiny()
            side = wrapped(theirs(model), vectors(model)[:1])
            return self._control("tiny-wrapped", "every layer wrapped, tiny model", model, side)

        return [slow, naive]

    def _control(self, name: str, says: str, model: nn.Module, side: Side) -> Row:
        prompt = TINY.prompt(256)
        a, b = Decoder(side, prompt), Decoder(plain(model), prompt)
        return self._decoded((name, "off", says), TINY, a, b, control=True)

    def _case(self, work: Work, case: Case) -> Row:
        side = steered(self.model, case, self.vectors, work.batch)
        words = (case.name, "off", case.says)
        if case.target is None:
            self._assert_identical(work, side)
        if work.kind == "prefill" and not work.behind:
            return self._read(words, work, side, plain(self.model), case.target)
        both = self._behind(case.name, side, work), self._off(work)
        if work.kind == "prefill":
            return self._pieces(words, work, *both, case.target)
        return self._decoded(words, work, *both, case.target)

    def _peers(self) -> list[Callable[[], Row]]:
        work = Work("decode", self.plan.contexts[0])
        prompts = Work("prefill", self.plan.contexts[0])

        def own() -> Row:
            peer = self._decoder(plain_peer(theirs(self.model)), work)
            return self._decoded(
                ("ours", "mlx-lm", "our definition, unsteered"), work, self._off(work), peer
            )

        def naive(count: int) -> Row:
            peer = plain_peer(theirs(self.model))
            side = wrapped(theirs(self.model), self.vectors[:count])
            words = (f"wrapped-{count}", "mlx-lm", f"every layer wrapped, {count} vectors")
            return self._decoded(words, work, self._decoder(side, work), self._decoder(peer, work))

        def capture() -> Row:
            words = ("capture", "off", "residuals of every layer captured")
            return self._read(words, prompts, captured(self.model), plain(self.model), None)

        jobs: list[Callable[[], Row]] = [own, partial(naive, 1), partial(naive, 4)]
        return [*jobs, capture] if self.plan.prefill else jobs

    def _off(self, work: Work) -> Decoder:
        """Return the plain model behind the work's context."""
        return self._behind("off", plain(self.model), work)

    def _behind(self, name: str, side: Side, work: Work) -> Decoder:
        """Return a side behind the work's context, which it has read once if it was the last one:
        of the base and of what is compared to it, one each is kept."""
        slot = "off" if name == "off" else "case"
        key = name, work.context, work.batch
        if self.read.get(slot, (None,))[0] != key:
            self.read.pop(slot, None)  # its caches go before others come
            gc.collect()
            self.read[slot] = key, self._decoder(side, work)
        return self.read[slot][1]

    def _decoder(self, side: Side, work: Work) -> Decoder:
        return Decoder(side, work.prompt(self.vocabulary))

    def _assert_identical(self, work: Work, idle: Side) -> None:
        """Raise unless a prompt and a step behind it have the plain model's bits."""
        prompt = work.prompt(self.vocabulary)
        a, b = Decoder(idle, prompt), Decoder(plain(self.model), prompt)
        if not (mx.array_equal(a.logits, b.logits) and mx.array_equal(a.step(), b.step())):
            raise MlxsteerError(
                f"{work}: at strength 0 the logits are not the plain model's, bit for bit; nothing "
                "is timed. Please report it"
            )

    def _decoded(
        self,
        words: tuple[str, str, str],
        work: Work,
        a: Decoder,
        b: Decoder,
        target: float | None = None,
        *,
        control: bool = False,
    ) -> Row:
        steps = b.enough_steps()
        blocks = a.block(steps), b.block(steps)
        ratio = interleaved(*blocks, self.plan.patience)
        return _row(
            words,
            work,
            ratio,
            steps * work.batch,
            blocks,
            target=target,
            control=control,
            nodes=a.nodes(),
            base_nodes=b.nodes(),
            host_ms=round(1e3 * a.host_seconds(), 3),
            base_host_ms=round(1e3 * b.host_seconds(), 3),
        )

    def _pieces(
        self,
        words: tuple[str, str, str],
        work: Work,
        a: Decoder,
        b: Decoder,
        target: float | None,
    ) -> Row:
        longest = getattr(self.model.args, "max_position_embeddings", None) or 10**9
        tokens = b.enough_tokens(self.vocabulary, longest - work.context)
        blocks = a.piece(tokens), b.piece(tokens)
        ratio = interleaved(*blocks, self.plan.patience)
        counts = {"nodes": a.nodes(tokens), "base_nodes": b.nodes(tokens)}
        return _row(words, work, ratio, tokens.size, blocks, target=target, **counts)

    def _read(
        self, words: tuple[str, str, str], work: Work, a: Side, b: Side, target: float | None
    ) -> Row:
        prompt = work.prompt(self.vocabulary)
        blocks = Block(lambda: read(a, prompt)), Block(lambda: read(b, prompt))
        ratio = interleaved(*blocks, self.plan.patience)
        counts = {}
        if words[0] != "capture":  # which evaluates on its way
            piece = prompt[:, :CHUNK]
            counts = {
                key: nodes(side.model(piece, cache=side.make_cache(work.context)))
                for key, side in (("nodes", a), ("base_nodes", b))
            }
        return _row(words, work, ratio, prompt.size, blocks, target=target, **counts)


def _row(
    words: tuple[str, str, str],
    work: Work,
    ratio: Ratio,
    tokens: int,
    blocks: tuple[Block, Block],
    **rest: Any,
) -> Row:
    peaks = [_peak(block) for block in blocks]
    return Row(
        *words,
        kind=work.kind,
        context=work.context,
        batch=work.batch,
        behind=work.behind,
        ratio=round(ratio.ratio, 4),
        low=round(ratio.low, 4),
        high=round(ratio.high, 4),
        rounds=ratio.rounds,
        seconds=ratio.seconds,
        base_seconds=ratio.base_seconds,
        tokens=tokens,
        peak_gb=peaks[0],
        base_peak_gb=peaks[1],
        **rest,
    )


def _peak(block: Block) -> float:
    """Return the most memory that MLX holds during a block, in GB."""
    mx.reset_peak_memory()
    block.run()
    block.undo()
    return round(peak_memory() / 1e9, 3)
