"""Check DeepSeek-V4-Flash on real weights against what DeepSeek's own API answered.

    git clone https://github.com/antirez/ds4
    python bench/deepseek_v4_logprobs.py ds4/tests/test-vectors [MODEL]

MODEL is `deepseek-v4-flash` or any conversion of that release (not of its successor 0731). ds4's
vectors are five prompts, two of them of more than 3,000 tokens, with 17 tokens that the API wrote
in May 2026, greedily and without thinking. At temperature 0 the API gave its choice the
log-probability 0 and everything else -9999: they say which token comes first and not by how much.
So compared are how many tokens a prompt has, which the template and the tokenizer decide, and
whether the API's token is the likeliest here, behind the API's own tokens before it. Printed are
its rank and its log-probability here; the exit code is 1 if any of it differs.

The official files should agree on every token; a conversion in few bits may miss a close one.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlxsteer  # before mlx, to run on the fast BLAS

# isort: split
import mlx.core as mx

from mlxsteer.prompt_cache import read
from mlxsteer.prompts import render
from mlxsteer.runtime import Steered


@dataclass(frozen=True)
class Step:
    """One token of the API: its rank and log-probability here; 0 is the likeliest."""

    text: str
    rank: int
    logprob: float


@dataclass(frozen=True)
class Case:
    """One prompt: how many tokens it has here and there, and the tokens that follow."""

    name: str
    tokens: int
    official_tokens: int
    steps: tuple[Step, ...]

    @property
    def agrees(self) -> bool:
        """Whether nothing differs."""
        return self.tokens == self.official_tokens and all(s.rank == 0 for s in self.steps)


def check(model: Any, tokenizer: Any, folder: Path) -> Iterator[Case]:
    """Yield what the model makes of each `official/*.official.json` of a folder."""
    paths = sorted((folder / "official").glob("*.official.json"))
    if not paths:
        raise SystemExit(f"{folder} has no official/*.official.json: clone ds4 first (--help)")
    steered = Steered(model)
    for path in paths:
        said = json.loads(path.read_bytes())
        prompt = render(tokenizer, said["request"]["messages"], thinking=False)
        texts = [step["token"]["text"] for step in said["steps"]]
        ids = [token_of(tokenizer, text) for text in texts]
        cache = read(steered, prompt[:-1])
        last = mx.array([[prompt[-1], *ids[:-1]]])
        logits = steered(last, cache=cache)[0].astype(mx.float32)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        steps = []
        for text, token, row in zip(texts, ids, logprobs, strict=True):
            rank = int((row > row[token]).sum().item())
            steps.append(Step(text, rank, float(row[token].item())))
        yield Case(said["id"], len(prompt), said["usage"]["prompt_tokens"], tuple(steps))


def token_of(tokenizer: Any, text: str) -> int:
    """The one token that a text of the API is."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) != 1:
        raise SystemExit(f"{text!r} is one token to the API and {len(ids)} here: another tokenizer")
    return int(ids[0])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("vectors", type=Path, help="ds4/tests/test-vectors")
    parser.add_argument("model", nargs="?", default="deepseek-v4-flash")
    options = parser.parse_args()
    model, tokenizer = mlxsteer.load(options.model)
    cases = []
    for case in check(model, tokenizer, options.vectors):
        cases.append(case)
        print(f"{case.name}: {case.tokens} tokens, {case.official_tokens} there")
        for step in case.steps:
            print(f"  {step.text!r:12} rank {step.rank}, log-probability {step.logprob:.3f}")
    steps = [step for case in cases for step in case.steps]
    first = sum(step.rank == 0 for step in steps)
    good = sum(case.tokens == case.official_tokens for case in cases)
    print(
        f"{first} of {len(steps)} tokens are the likeliest here too, "
        f"{good} of {len(cases)} prompts have as many tokens"
    )
    return 0 if all(case.agrees for case in cases) else 1


if __name__ == "__main__":
    sys.exit(main())
