"""How fast contrast prompts are read: batched with shared prefixes, against one at a time.

    python bench/extract.py [MODEL]

Prints the seconds of the batched capture of 100 pairs (all layers, no logits), and the ratio to the
same prompts one at a time (also without logits), interleaved in the same run on a part of them;
then the seconds in which all concepts of the library become directions of all layers.
"""

import dataclasses
import time

from common import arguments, save

import mlxsteer
from mlxsteer.bench.measure import Block, interleaved
from mlxsteer.capture import capture
from mlxsteer.library import concept, concepts
from mlxsteer.prompts import render

PAIRS = 100
TOKENS = 30  # of the user's text


def main() -> None:
    options = arguments(__doc__)
    model, tokenizer = mlxsteer.load(options.model)
    texts = [text for c in concepts() if c.recipe for text in c.recipe.prompts]
    short = [t for t in texts if len(tokenizer.encode(t)) <= TOKENS][:PAIRS]
    recipe = concept("pirate").recipe
    assert recipe is not None
    pairs = dataclasses.replace(recipe, prompts=tuple(short)).pairs()
    picked = [
        [render(tokenizer, getattr(p, side)) for p in pairs] for side in ("positive", "negative")
    ]
    tokens = sum(len(p) for side in picked for p in side)
    start = time.perf_counter()
    for side in picked:
        capture(model, side)
    seconds = time.perf_counter() - start
    speed = tokens / seconds
    print(f"{len(short)} pairs, {tokens} tokens, all layers: {seconds:.1f} s, {speed:.0f} tokens/s")

    part = [side[:12] for side in picked]

    def batched() -> None:
        for side in part:
            capture(model, side)

    def one_at_a_time() -> None:
        for side in part:
            for prompt in side:
                capture(model, [prompt])

    r = interleaved(Block(batched), Block(one_at_a_time), options.patience)
    print(
        f"12 pairs: one at a time takes {r.ratio:.2f} times as long "
        f"[{r.low:.2f}, {r.high:.2f}] ({r.base_seconds:.2f} s against {r.seconds:.2f} s)"
    )
    whole = {"pairs": len(short), "tokens": tokens, "seconds": seconds, "tokens_per_second": speed}
    every, found, layers = concepts(), 0, range(len(model.layers))
    start = time.perf_counter()
    for each in every:
        vector = mlxsteer.extract(model, tokenizer, each, layers=layers, calibrate=False)
        found += vector.n_pairs
    seconds = time.perf_counter() - start
    print(f"library: {len(every)} concepts, {found} pairs, all layers: {seconds:.1f} s")
    library = {"concepts": len(every), "pairs": found, "seconds": seconds}
    save(options.json, model, {"capture": whole, "one at a time / batched": r, "library": library})


if __name__ == "__main__":
    main()
