"""Gemma 3 checkpoints that can see: their language model, without the vision tower.

The text model lies under `language_model` and is that of `gemma3_text`, taps and all; weights of
the vision tower and its projector are dropped, as in mlx-lm. It knows nothing of images or vectors.

    logits = model(tokens, cache, taps)      # [B, T] -> [B, T, V]
"""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..taps import Taps
from . import gemma3_text
from .config import FamilyArgs

__all__ = ["Model", "ModelArgs"]

TEXT = "language_model."


@dataclass
class ModelArgs(FamilyArgs):
    """A `config.json` whose language model is described in `text_config`."""

    model_type: str
    text_config: dict[str, Any]
    vocab_size: int = 0

    def __post_init__(self) -> None:
        # what configs leave out; the text-only models have other defaults
        defaults = {"model_type": "gemma3_text", "num_attention_heads": 8, "num_key_value_heads": 4}
        self.vocab_size = self.vocab_size or self.text_config.get("vocab_size") or 262208
        nested = {**defaults, **self.text_config, "vocab_size": self.vocab_size}
        self.text: gemma3_text.ModelArgs = gemma3_text.ModelArgs.from_dict(nested)

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return self.text.hidden_size

    @property
    def num_hidden_layers(self) -> int:
        """Blocks of the language model."""
        return self.text.num_hidden_layers

    @property
    def max_position_embeddings(self) -> int:
        """Tokens of context."""
        return self.text.max_position_embeddings


class Model(nn.Module):
    """The language model of a Gemma 3 that can see; `UNREAD` is how the names of the rest begin."""

    UNREAD = ("vision_tower.", "multi_modal_projector.")

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.args = args
        self.model_type = args.model_type
        self.language_model = gemma3_text.Model(args.text)

    def __call__(
        self,
        tokens: mx.array,
        cache: list[Any] | None = None,
        taps: Taps | None = None,
        input_embeddings: mx.array | None = None,
    ) -> mx.array:
        """Return logits `[B, T, V]` for `tokens` `[B, T]`, with the residual joined by `taps`."""
        return self.language_model(tokens, cache, taps, input_embeddings)

    @property
    def layers(self) -> list[nn.Module]:
        """The blocks, in order."""
        return self.language_model.layers

    def make_cache(self) -> list[Any]:
        """Return one empty KV cache per block."""
        return self.language_model.make_cache()

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Drop the vision tower and its projector."""
        read = {k: w for k, w in weights.items() if not k.startswith(self.UNREAD)}
        text = self.language_model.sanitize({k.removeprefix(TEXT): w for k, w in read.items()})
        return {TEXT + k: w for k, w in text.items()}
