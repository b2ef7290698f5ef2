"""`mlxsteer demo`: one vector extracted, calibrated and used both ways, in front of your eyes."""

import time

import click

from .options import ModelChoice, check_prompt, model_options, say, tokens_option

__all__ = ["command"]

NEXT = "llama-3.2-3b"
STRENGTHS = (-1.0, 0.0, 1.0)


@click.command("demo")
@model_options
@click.option("--concept", default="joyful", show_default=True, help="A library name or a folder.")
@click.option("--prompt", default="How was the party?", show_default=True, help="What to ask.")
@tokens_option(44)
def command(model: ModelChoice, concept: str, prompt: str, max_tokens: int) -> None:
    """Extract a vector, calibrate it, and write one answer at strength -1, 0 and 1.

    \b
    Example:
      mlxsteer demo --concept pirate
    """
    from ..library import concept as find_concept
    from ..progress import bars

    began = time.perf_counter()
    found = find_concept(concept)
    check_prompt(prompt)
    from ..calibrate import calibrate
    from ..extract import extract
    from ..generate import encode, generate_batch
    from ..steering import Steering
    from .columns import columns
    from .extract import summary
    from .sources import load_model

    with bars() as progress:
        loaded, tokenizer = load_model(model, progress)
        tokens = encode(loaded, tokenizer, prompt, thinking=False)  # it would fill the table
        say(f"1. loaded {loaded.source}, quantization {loaded.source.quantization}")
        vector = extract(loaded, tokenizer, found, calibrate=False, progress=progress)
        vector = calibrate(loaded, tokenizer, vector, limits=False, progress=progress)
    say(f"2. read {vector.n_pairs} pairs: {found.positive} / {found.negative}")
    say(f"3. {summary(vector)}")
    say(f"4. {prompt!r}, greedy, three rows of one batch, each its own strength:")
    detokenizers = [tokenizer.detokenizer for _ in STRENGTHS]
    written, start = 0, time.perf_counter()
    with columns([f"{found.name}={s:g}" if s else "unsteered" for s in STRENGTHS]) as show:
        for row, token in generate_batch(
            loaded,
            tokenizer,
            [tokens] * len(STRENGTHS),
            steering=[Steering((vector, s)) for s in STRENGTHS],
            max_tokens=max_tokens,
        ):
            detokenizers[row].add_token(token)
            show(row, detokenizers[row].last_segment)
            written += 1
        seconds = time.perf_counter() - start
        for row, detokenizer in enumerate(detokenizers):
            detokenizer.finalize()
            show(row, detokenizer.last_segment)
    say(
        f"{written} tokens at {written / seconds:.1f} tokens/s; "
        f"{time.perf_counter() - began:.0f} s in all.\n"
        f"Next, a larger model on a Mac:\n"
        f'  mlxsteer generate "{prompt}" -m {NEXT} -s {concept}=1 --compare'
    )
