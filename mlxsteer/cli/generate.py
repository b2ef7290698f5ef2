"""`mlxsteer generate`: a prompt in, steered text out, as it is written."""

import json
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from .options import (
    ModelChoice,
    check_prompt,
    model_options,
    parse_layers,
    say,
    tokens_option,
    whole_number,
)

__all__ = ["command"]


@click.command("generate")
@click.argument("prompt", required=False)
@click.option(
    "--prompts",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Instead of PROMPT: many at once, a line each or JSON lines; answers as JSON lines.",
)
@click.option(
    "-s",
    "--steer",
    multiple=True,
    metavar="NAME=STRENGTH",
    help="A concept (see mlxsteer vectors), a folder, a vector file, or one on the Hub, "
    "owner/name[@revision][:concept]; may be repeated. "
    "Strength 1 is the calibrated one, 0 is off, -1 the opposite.",
)
@click.option("--compare", is_flag=True, help="Unsteered and steered side by side, same seed.")
@click.option(
    "--phase",
    help="When to steer: all, prompt, response, answer (after thinking), or tokens such as 0:20.",
)
@click.option(
    "--schedule",
    help="How strength changes along the response: constant, decay(N) or ramp(N), N in tokens.",
)
@click.option("--keep-norm", is_flag=True, help="Give every token its norm back after the edits.")
@click.option("--layers", help="Only these layers of the vectors, such as 10-15 or 3,5,7.")
@model_options
@tokens_option(256)
@click.option("--temp", default=0.0, help="Temperature of sampling.  [default: 0, greedy]")
@click.option(
    "--top-p", default=0.0, help="Only the likeliest tokens that make up this probability."
)
@click.option(
    "--min-p", default=0.0, help="Only tokens with this share of the likeliest one's probability."
)
@click.option("--top-k", default=0, help="Only the K likeliest tokens.", metavar="K")
@click.option(
    "--seed",
    type=int,
    metavar="N",
    callback=whole_number(0, 2**64 - 1),
    help="Of the sampling.  [default: a new one, told on stderr]",
)
@click.option("--system", help="A system message before the prompt.")
@click.option("--raw", is_flag=True, help="Read the prompt as it stands, without chat template.")
@click.option("--no-thinking", is_flag=True, help="Ask the chat template for no thinking.")
@click.option("--hide-thinking", is_flag=True, help="Show the answer only.  [default: all, dimmed]")
def command(
    prompt: str | None,
    prompts: Path | None,
    model: ModelChoice,
    steer: tuple[str, ...],
    phase: str | None,
    schedule: str | None,
    keep_norm: bool,
    layers: str | None,
    compare: bool,
    max_tokens: int,
    seed: int | None,
    system: str | None,
    raw: bool,
    no_thinking: bool,
    hide_thinking: bool,
    **sampling: Any,
) -> None:
    """Write the model's answer to PROMPT ("-" reads it from stdin).

    A concept that has no vector for the model yet is extracted first, once. What a model
    thinks is dimmed on a terminal; in the JSON lines of --prompts it is "thinking" beside "text".

    \b
    Examples:
      mlxsteer generate "How was your day?" -s joyful=1
      mlxsteer generate "How was your day?" -s joyful=-1 -s terse=0.5 --compare
      mlxsteer generate --prompts questions.txt -s terse=1 > answers.jsonl
    """
    from ..errors import MlxsteerError, UsageError
    from ..progress import bars
    from ..prompt_file import read_prompt_file
    from .sources import load_model, named_vectors, steering_of

    if raw and system is not None:
        raise UsageError("--raw has no place for a --system message: leave one of them out")
    if raw and no_thinking:
        raise UsageError("--raw has no chat template that --no-thinking could ask: leave one out")
    if (prompt is None) == (prompts is None):
        raise UsageError("give either a PROMPT or --prompts FILE: mlxsteer generate --help")
    if prompts is not None and (compare or system is not None):
        raise UsageError("--prompts has no --compare and no --system: leave them out")
    for flag, value in (
        ("--compare", compare),
        ("--phase", phase),
        ("--layers", layers),
        ("--schedule", schedule),
        ("--keep-norm", keep_norm),
    ):
        if value and not steer:
            raise UsageError(f"{flag} needs something that steers: add -s NAME=STRENGTH")
    for name in ("top_p", "min_p", "top_k"):
        if sampling[name] and not sampling["temp"]:
            flag = name.replace("_", "-")
            raise UsageError(f"--{flag} does nothing without sampling: add --temp 0.7")
    chosen = parse_layers(layers)
    named = named_vectors(steer)
    many = read_prompt_file(prompts) if prompts is not None else []
    text = sys.stdin.read().rstrip("\n") if prompt == "-" else prompt or ""
    if prompts is None:
        check_prompt(text)
    from ..generate import Sampling, encode
    from ..steering import Phase, Schedule
    from ..thinking import Thinking

    if phase is not None:
        Phase.parse(phase)
    how_long = Schedule.parse(schedule or "constant")
    if seed is None and sampling["temp"] > 0:
        seed = secrets.randbelow(1 << 31)
        say(f"note: --seed {seed}")
    how = Sampling(seed=seed, **sampling)
    with bars() as progress:
        loaded, tokenizer = load_model(model, progress)
        said = [text] if prompts is None else many
        asked: dict[str, Any] = {"raw": raw, "system": system}
        if no_thinking:
            asked["thinking"] = False
        tokens = []
        for number, each in enumerate(said, 1):
            try:
                tokens.append(encode(loaded, tokenizer, each, **asked))
            except MlxsteerError as error:
                where = f"{prompts}, prompt {number}: " if prompts is not None else ""
                raise type(error)(f"{where}{error}") from error
        if no_thinking and tokenizer.has_thinking:
            asked["thinking"] = True
            if encode(loaded, tokenizer, said[0], **asked) == tokens[0]:
                raise UsageError(
                    "--no-thinking: the chat template of this model cannot be asked for that; "
                    "--hide-thinking shows the answer only"
                )
        steering = steering_of(
            named,
            loaded,
            tokenizer,
            model.name,
            progress,
            layers=chosen,
            phase=phase,
            schedule=how_long,
            keep_norm=keep_norm,
        )
        options = {"max_tokens": max_tokens, "sampling": how}
        thinking = [Thinking.after(tokenizer, each, hide=hide_thinking) for each in tokens]
        read = max(map(len, tokens)) + max_tokens - 1
        if steering.active and all(t.phase.is_window and t.phase.start >= read for t in steering):
            say(
                f"note: nothing is steered: phase {phase} begins after the {read} tokens to be read"
            )
        if prompts is not None:
            _many(loaded, tokenizer, many, tokens, thinking, steering, progress, options)
    context = getattr(loaded.args, "max_position_embeddings", None)
    if prompts is None and context is not None and len(tokens[0]) + max_tokens > context:
        say(f"note: the model reads {context} tokens; an answer of {max_tokens} may go beyond")
    if compare:
        before = Thinking.after(tokenizer, tokens[0], hide=hide_thinking)
        pair = (before, thinking[0])
        _compare(loaded, tokenizer, tokens[0], pair, steering, " ".join(steer), options)
    elif prompts is None:
        _stream(loaded, tokenizer, tokens[0], thinking[0], steering, options)
    _tell_of_thinking(thinking, steering)


def _many(
    model: Any,
    tokenizer: Any,
    prompts: list[Any],
    tokens: list[list[int]],
    thinking: list[Any],
    steering: Any,
    progress: Any,
    options: dict[str, Any],
) -> None:
    """Write a line of JSON per prompt, in their order, each once those before it are there."""
    from ..generate import generate_many

    # a bar on the same terminal: click would write into it
    write = print if sys.stdout.isatty() else click.echo
    texts = generate_many(model, tokenizer, tokens, steering=steering, progress=progress, **options)
    for prompt, each, text in zip(prompts, thinking, texts, strict=True):
        thought, answer = each.parts(text)
        line = {"prompt" if isinstance(prompt, str) else "messages": prompt}
        if thought and not each.hide:
            line["thinking"] = thought
        write(json.dumps({**line, "text": answer}, ensure_ascii=False))


def _stream(
    model: Any,
    tokenizer: Any,
    prompt: list[int],
    thinking: Any,
    steering: Any,
    options: dict[str, Any],
) -> None:
    from ..generate import stream_generate

    last = None
    try:
        for last in stream_generate(model, tokenizer, prompt, steering=steering, **options):
            for piece, thought in thinking.split(last.text, last=last.finish_reason is not None):
                click.secho(piece, nl=False, dim=thought or None)
    finally:
        if last is not None:
            click.echo()
            say(speed(last))


def _compare(
    model: Any,
    tokenizer: Any,
    prompt: list[int],
    thinking: Sequence[Any],
    steering: Any,
    title: str,
    options: dict[str, Any],
) -> None:
    from ..generate import stream_generate
    from ..steering import Steering
    from .columns import columns

    lasts: dict[str, Any] = {}
    try:
        with columns(["unsteered", title]) as show:
            for i, each in enumerate((Steering(), steering)):
                for last in stream_generate(model, tokenizer, prompt, steering=each, **options):
                    ends = last.finish_reason is not None
                    for piece, thought in thinking[i].split(last.text, last=ends):
                        show(i, piece, thought)
                    lasts["steered" if i else "unsteered"] = last
    finally:
        for name, last in lasts.items():
            say(f"{name}: {speed(last)}")


def _tell_of_thinking(thinking: list[Any], steering: Any) -> None:
    """Say so where the thinking never ended: nothing is to be seen, or nothing was steered."""
    inside = sum(each.place == "inside" for each in thinking)
    if inside and thinking[0].hide:
        say(f"note: {inside} of {len(thinking)} still thinking at the end of -n: raise it")
    never = sum(each.place != "behind" for each in thinking)
    if never and any(t.phase.name == "answer" for t in steering.active):
        say(
            f"note: phase answer did not steer {never} of {len(thinking)}: no thinking was closed; "
            "raise -n, or use --phase response"
        )


def speed(last: Any) -> str:
    """Return mlx-lm's figures of a generation in one line."""
    cut = ", all of -n," if last.finish_reason == "length" else ""
    return (
        f"{last.prompt_tokens} tokens read at {last.prompt_tps:.1f}/s, "
        f"{last.generation_tokens} written{cut} at {last.generation_tps:.1f}/s, "
        f"peak memory {last.peak_memory:.2f} GB"
    )
