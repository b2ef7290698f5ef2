"""What steering costs in decoding, and what our definition costs against mlx-lm's own.

    python bench/decode.py [MODEL]

Blocks of decode steps, A B B A in one process. A ratio is tokens/s of the first over the second.
"""

import argparse
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx_lm.models.llama as mlx_llama
import numpy as np
from interleaved import interleaved
from mlx.utils import tree_flatten

import mlxsteer
from mlxsteer import Steered, Steering, Vector

STEPS = 16


def decoder(model: Any, cache: list[Any]) -> Callable[[], None]:
    """Return a block of greedy steps behind a prompt; it goes back after each block."""
    prompt = mx.array([list(range(5, 69))])
    mx.eval(model(prompt, cache=cache))

    def block() -> None:
        token = mx.array([[7]])
        for _ in range(STEPS):
            token = model(token, cache=cache)[:, -1:].argmax(-1)
            mx.async_eval(token)
        mx.eval(token)
        for entry in cache:
            entry.trim(STEPS)

    return block


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    model, _ = mlxsteer.load(arguments.model)
    theirs = mlx_llama.Model(mlx_llama.ModelArgs.from_dict(vars(model.args)))
    theirs.load_weights(list(tree_flatten(model.parameters())))
    rng = np.random.default_rng(0)
    width, layers = model.args.hidden_size, range(len(model.layers))
    vectors = [
        Vector.from_rows(f"v{i}", {n: rng.normal(size=width) for n in layers}) for i in range(10)
    ]

    def steered(count: int) -> Callable[[], None]:
        view = Steered(model, Steering(*((v, 1e-4) for v in vectors[:count])))
        return decoder(view, view.make_cache())

    plain = decoder(model, model.make_cache())
    cases = {
        "ours / mlx-lm's own class": (plain, decoder(theirs, model.make_cache())),
        "idle view / plain": (steered(0), plain),
        "1 vector on every layer / plain": (steered(1), plain),
        "10 vectors on every layer / plain": (steered(10), plain),
    }
    for name, (a, b) in cases.items():
        r = interleaved(a, b, arguments.rounds)
        speed = STEPS / r.a
        print(
            f"{name}: {r.ratio:.3f} [{r.low:.3f}, {r.high:.3f}] ({speed:.1f} tokens/s)", flush=True
        )


if __name__ == "__main__":
    main()
