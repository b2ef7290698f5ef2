"""What steering costs in decoding, and what our definition costs against mlx-lm's own.

    python bench/decode.py [MODEL]

Blocks of decode steps, A B B A in one process. A ratio is tokens/s of the first over the second.
"""

from collections.abc import Callable
from typing import Any

import mlxsteer  # before mlx, to run on the fast BLAS

# isort: split
import mlx.core as mx
import mlx_lm.models.llama as mlx_llama
import numpy as np
from interleaved import arguments, interleaved, save
from mlx.utils import tree_flatten

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
    options = arguments(__doc__, rounds=20)
    model, _ = mlxsteer.load(options.model)
    theirs = mlx_llama.Model(mlx_llama.ModelArgs.from_dict(vars(model.args)))
    theirs.load_weights(list(tree_flatten(model.parameters())))
    rng = np.random.default_rng(0)
    width, layers = model.args.hidden_size, range(len(model.layers))
    vectors = [
        Vector.from_rows(f"v{i}", {n: rng.normal(size=width) for n in layers}) for i in range(10)
    ]

    def steered(count: int, op: str = "add", **how: Any) -> Callable[[], None]:
        targets = {"targets": [0.0] * len(layers)} if op == "clamp" else {}
        chosen = (v.replace(op=op, **targets) for v in vectors[:count])
        view = Steered(model, Steering(*((v, 1e-4) for v in chosen), **how))
        return decoder(view, view.make_cache(prompt_length=64))

    plain = decoder(model, model.make_cache())
    cases = {
        "ours / mlx-lm's own class": (plain, decoder(theirs, model.make_cache())),
        "idle view / plain": (steered(0), plain),
        "1 vector on every layer / plain": (steered(1), plain),
        "10 vectors on every layer / plain": (steered(10), plain),
        "projection on every layer / plain": (steered(1, "project"), plain),
        "clamp on every layer / plain": (steered(1, "clamp"), plain),
        "1 vector, norms kept / plain": (steered(1, keep_norm=True), plain),
    }
    found = {}
    for name, (a, b) in cases.items():
        found[name] = r = interleaved(a, b, options.rounds)
        speed = STEPS / r.a
        print(
            f"{name}: {r.ratio:.3f} [{r.low:.3f}, {r.high:.3f}] ({speed:.1f} tokens/s)", flush=True
        )
    save(options.json, model, found)


if __name__ == "__main__":
    main()
