"""How much faster many prompts are answered at once than one after the other.

    python bench/batch.py [MODEL]

32 neutral prompts, greedy, 16 tokens each; tokens/s of the batch over tokens/s of one at a time.
"""

from common import arguments, save

import mlxsteer
from mlxsteer.bench.measure import Block, interleaved
from mlxsteer.generate import encode, generate_batch
from mlxsteer.library import neutral_prompts

PROMPTS, TOKENS = 32, 16


def main() -> None:
    options = arguments(__doc__)
    model, tokenizer = mlxsteer.load(options.model)
    rows = [encode(model, tokenizer, text) for text in neutral_prompts()[:PROMPTS]]

    def together() -> None:
        for _ in generate_batch(model, tokenizer, rows, max_tokens=TOKENS):
            pass

    def one_at_a_time() -> None:
        for row in rows:
            for _ in generate_batch(model, tokenizer, [row], max_tokens=TOKENS):
                pass

    r = interleaved(Block(together), Block(one_at_a_time), options.patience)
    print(
        f"{PROMPTS} prompts at once: {r.ratio:.2f} times the tokens/s of one at a time "
        f"[{r.low:.2f}, {r.high:.2f}] ({r.seconds:.1f} s against {r.base_seconds:.1f} s)"
    )
    save(options.json, model, {"32 at once / one at a time": r})


if __name__ == "__main__":
    main()
