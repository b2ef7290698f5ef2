"""Steered text: prompts in, text out, through mlx-lm's own generation loop.

Prompts go through the model's chat template unless `raw`; sampling, detokenisation, KV caches and
the decode loop are mlx-lm's. This module knows nothing of files, extraction or the terminal.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.generate import BatchGenerator, GenerationResponse
from mlx_lm.generate import stream_generate as mlx_stream_generate
from mlx_lm.sample_utils import make_sampler

from .errors import MlxsteerError, UsageError
from .progress import Progress, silent
from .prompt_cache import read_alike
from .prompts import Message, check_length, render
from .runtime import Live, Steered
from .selftest import reads_ragged
from .steering import Steering
from .taps import Taps

__all__ = [
    "Sampling",
    "encode",
    "forward",
    "generate",
    "generate_batch",
    "stream_generate",
    "think_end",
]

Prompt = str | Sequence[int] | Sequence[Message]

BATCH = 48  # rows written at once
EXPONENTS = {mx.float32: 0x7F800000, mx.bfloat16: 0x7F80, mx.float16: 0x7C00}


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen; the defaults are greedy. Fields are those of mlx-lm's `make_sampler`.

    Attributes:
        seed: of mlx's global random state; None leaves it as it is.
    """

    temp: float = 0.0
    top_p: float = 0.0
    min_p: float = 0.0
    top_k: int = 0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not self.temp >= 0 or self.temp == float("inf"):
            raise UsageError(f"temp {self.temp} is no temperature: use 0 (greedy) or above")
        for name in ("top_p", "min_p"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} {getattr(self, name)} is no probability: use 0 to 1")
        if self.top_k < 0:
            raise UsageError(f"top_k {self.top_k} is negative: use 0 (off) or more")

    def sampler(self) -> Any:
        """Seed mlx and return mlx-lm's sampler."""
        if self.seed is not None:
            mx.random.seed(self.seed)
        return make_sampler(self.temp, top_p=self.top_p, min_p=self.min_p, top_k=self.top_k)


def encode(
    model: nn.Module,
    tokenizer: Any,
    prompt: Prompt,
    *,
    raw: bool = False,
    system: str | None = None,
    thinking: bool | None = None,
) -> list[int]:
    """Return the token ids of a prompt.

    Args:
        prompt: text, chat messages, or token ids (taken as they are).
        raw: the text as it stands, without the chat template.
        system: a system message put before the text.
        thinking: whether the chat template asks for it; None is yes, for a model that can.

    Raises:
        UsageError: nothing to read, or more than the model's context holds.
    """
    if not prompt:
        raise UsageError("the prompt is empty")
    if not isinstance(prompt, str) and isinstance(prompt[0], int):
        tokens: list[int] = [t for t in prompt if isinstance(t, int)]
    elif raw:
        if not isinstance(prompt, str) or system is not None or thinking is not None:
            raise UsageError("a raw prompt is a text without a system message or thinking mode")
        tokens = list(tokenizer.encode(prompt))
    else:
        messages: Any = prompt
        if isinstance(prompt, str):
            messages = [{"role": "user", "content": prompt}]
        if system is not None:
            messages = [{"role": "system", "content": system}, *messages]
        tokens = render(tokenizer, messages, thinking=thinking)
    if not tokens:
        raise UsageError("the prompt is empty")
    check_length(tokens, getattr(model.args, "max_position_embeddings", None), "the prompt")
    return tokens


def think_end(tokenizer: Any) -> tuple[int, ...]:
    """Return the tokens that close a model's thinking, () for one that does not think."""
    return tuple(tokenizer.think_end_tokens) if tokenizer.has_thinking else ()


def stream_generate(
    model: nn.Module,
    tokenizer: Any,
    prompt: Prompt,
    *,
    steering: Steering | Live | None = None,
    max_tokens: int = 256,
    sampling: Sampling = Sampling(),
    raw: bool = False,
    system: str | None = None,
    thinking: bool | None = None,
    **options: Any,
) -> Iterator[GenerationResponse]:
    """Yield mlx-lm's `GenerationResponse` per token: `.text`, `.token`, `.generation_tps`, ...

    Args:
        steering: what to steer with; a `Live` may be changed while the generator runs.
        max_tokens: the most tokens to write.
        sampling: how tokens are chosen.
        raw, system, thinking: as for `encode`.
        options: passed on to mlx-lm's `generate_step` (`logits_processors`, `prefill_step_size`,
            ...).

    Raises:
        UsageError: an empty prompt, `max_tokens` below 1, a strength that gives no numbers.
        MlxsteerError: a vector that does not belong to the model, a model that gives no numbers.
    """
    if max_tokens < 1:
        raise UsageError(f"max_tokens is {max_tokens}: use 1 or more")
    if "prompt_cache" in options:
        raise UsageError(
            "this reads every prompt anew: give mlx_lm.stream_generate a Steered(model) and "
            "prompt_cache=reuse(cache, steering, ...) of mlxsteer.prompt_cache"
        )
    tokens = encode(model, tokenizer, prompt, raw=raw, system=system, thinking=thinking)
    steered = Steered(model)
    cache = steered.make_cache(steering, len(tokens), think_end(tokenizer))
    for written in mlx_stream_generate(
        steered,
        tokenizer,
        tokens,
        max_tokens=max_tokens,
        sampler=sampling.sampler(),
        prompt_cache=cache,
        **options,
    ):
        _check_number(written.token, written.logprobs, steering)
        yield written


def _check_number(token: int, logprobs: mx.array, steering: Steering | Live | None) -> None:
    """Refuse a token that was chosen from NaN or infinities.

    What was chosen has a finite log-probability, or the logits had none. Its bytes are on the host
    by now; an operation on them would wait for the step that is in flight.
    """
    exponent = EXPONENTS[logprobs.dtype]
    host = memoryview(logprobs)  # type: ignore[arg-type]
    bits = int.from_bytes(host[token : token + 1].tobytes(), "little")
    if bits & exponent != exponent:
        return
    asked = steering.steering if isinstance(steering, Live) else steering
    if asked is None or not asked.active:
        raise MlxsteerError("the model computes NaN: its files are damaged, or try another dtype")
    named = ", ".join(f"{t.vector.name}={t.strength:g}" for t in asked.active)
    raise UsageError(f"{named} makes the model compute NaN: use less strength")


def generate(model: nn.Module, tokenizer: Any, prompt: Prompt, **options: Any) -> str:
    """Return the whole answer; arguments as in `stream_generate`."""
    return "".join(r.text for r in stream_generate(model, tokenizer, prompt, **options))


def generate_batch(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    steering: Steering | Sequence[Steering | None] | None = None,
    max_tokens: int = 256,
    sampling: Sampling = Sampling(),
    raw: bool = False,
) -> Iterator[tuple[int, int]]:
    """Yield `(row, token)` of many prompts written at once, each row with its own steering.

    A row ends when it has written an end token (not yielded) or `max_tokens` tokens. At most
    `BATCH` rows are written at once, or one where mlx-lm's class cannot; when one ends, the next
    prompt takes its place. What prompts begin with alike, such as a system prompt, is read once
    under each steering.

    Args:
        steering: one for all rows, or one per row.

    Raises:
        UsageError, MlxsteerError: as in `stream_generate`.
    """
    answers = _answers(
        model, tokenizer, prompts, steering, max_tokens=max_tokens, sampling=sampling, raw=raw
    )
    for row, token, _ in answers:
        if token is not None:
            yield row, token


def generate_many(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    steering: Steering | Sequence[Steering | None] | None = None,
    progress: Progress = silent,
    **options: Any,
) -> Iterator[str]:
    """Yield the answers to many prompts in their order, each once those before it are there.

    Arguments as in `generate_batch`.
    """
    rows: list[list[int]] = [[] for _ in prompts]
    ended: set[int] = set()
    first = 0
    progress("writing answers", 0, len(rows))
    for row, token, ends in _answers(model, tokenizer, prompts, steering, **options):
        if token is not None:
            rows[row].append(token)
        if ends:
            ended.add(row)
            progress("writing answers", len(ended), len(rows))
        while first in ended:
            yield tokenizer.decode(rows[first])
            first += 1


def _answers(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    steering: Steering | Sequence[Steering | None] | None,
    *,
    max_tokens: int = 256,
    sampling: Sampling = Sampling(),
    raw: bool = False,
) -> Iterator[tuple[int, int | None, bool]]:
    """Yield `(row, token, ended)`; the token is None where an end token ended the row."""
    if max_tokens < 1:
        raise UsageError(f"max_tokens is {max_tokens}: use 1 or more")
    rows = [encode(model, tokenizer, p, raw=raw) for p in prompts]
    each = list(steering) if isinstance(steering, Sequence) else [steering] * len(rows)
    if len(each) != len(rows):
        raise UsageError(f"{len(each)} steerings for {len(rows)} prompts: give one, or one each")
    steered = Steered(model)
    end = think_end(tokenizer)
    caches = [steered.make_cache(s, len(r), end) for s, r in zip(each, rows, strict=True)]
    begun = read_alike(steered, rows, caches)
    at_once = BATCH if reads_ragged(model) else 1
    generator = BatchGenerator(
        steered,
        max_tokens=max_tokens,
        stop_tokens=[[t] for t in tokenizer.eos_token_ids],
        sampler=sampling.sampler(),
        prefill_batch_size=at_once,
        completion_batch_size=at_once,
    )
    try:
        uids = generator.insert(
            [row[n:] for row, n in zip(rows, begun, strict=True)], caches=caches
        )
        order = {uid: i for i, uid in enumerate(uids)}
        while answers := generator.next_generated():
            for answer in answers:
                _check_number(answer.token, answer.logprobs, each[order[answer.uid]])
                reason = answer.finish_reason
                yield (
                    order[answer.uid],
                    None if reason == "stop" else answer.token,
                    reason is not None,
                )
    finally:
        generator.close()


def forward(
    model: nn.Module,
    tokens: Sequence[int] | Sequence[Sequence[int]] | mx.array,
    *,
    steering: Steering | Sequence[Steering] | None = None,
    prompt_length: int | None = None,
    think_end: Sequence[int] | None = None,
    taps: Taps | None = None,
) -> mx.array:
    """Return the logits of one pass over `tokens`, float32: `[T, V]`, or `[B, T, V]` for rows.

    Args:
        tokens: ids of one sequence, or of rows of one length.
        steering: one for all rows, or one per row.
        prompt_length: where the response begins, for the phases that need it.
        think_end: tokens that close the thinking, for the phase `answer`.
        taps: taps of your own instead (capture, patching).
    """
    ids = tokens if isinstance(tokens, mx.array) else mx.array(np.array(tokens, np.int32))
    batch = ids if ids.ndim == 2 else ids[None]
    if taps is not None:
        if steering is not None:
            raise UsageError("give steering or taps, not both")
        logits: mx.array = model(batch, taps=taps)
    else:
        each = list(steering) if isinstance(steering, Sequence) else [steering] * batch.shape[0]
        if len(each) != batch.shape[0]:
            raise UsageError(
                f"{len(each)} steerings for {batch.shape[0]} rows: give one, or one each"
            )
        steered = Steered(model)
        states = [steered.make_cache(s, prompt_length, think_end)[-1] for s in each]
        logits = steered(batch, cache=[*model.make_cache(), states[0].merge(states)])
    logits = logits.astype(mx.float32)
    return logits if ids.ndim == 2 else logits[0]
