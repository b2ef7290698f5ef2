"""What is read of many answers at once is what is read of each alone."""

import numpy as np
import pytest
from tiny import tiny, tokenizer

from mlxsteer.answers import Written, means, write
from mlxsteer.state import OFF

PROMPTS = ["how was your day", "tell me about the sea"]


def test_means_are_of_each_answer_behind_its_own_prompt() -> None:
    model, tok = tiny(), tokenizer()
    (written,) = write(model, tok, [[(prompt, OFF) for prompt in PROMPTS]], 4)
    turned = [Written(w.prompt_tokens, w.tokens[::-1], w.text) for w in written]
    groups = [written, turned, written[::-1]]
    found = means(model, tok, PROMPTS, groups)
    for group, read in zip(groups, found, strict=True):
        alone = [
            means(model, tok, [prompt], [[answer]])[0][0]
            for prompt, answer in zip(PROMPTS, group, strict=True)
        ]
        np.testing.assert_allclose(read, alone, rtol=1e-3, atol=1e-5)
    assert np.abs(found[0] - found[2]).max() > 0.01
    with pytest.raises(ValueError, match=r"shorter|longer"):
        means(model, tok, PROMPTS, [written[:1]])
