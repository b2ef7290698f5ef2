"""Steering is at the layer, of the sign and of the size that llama.cpp gives it.

The same model, the same control vector file, the same tokens; then the distributions over the next
token are compared: mean KL over the prompt, in nats per token. Every agreement has twins that must
disagree: one layer off, the opposite sign, 5% off, no vector.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from oracle import Array, Llama, control_vector, library, write_float32

from mlxsteer.capture import capture
from mlxsteer.generate import forward, stream_generate
from mlxsteer.interop import read_control_vector, write_control_vector
from mlxsteer.loading import load
from mlxsteer.methods import mean_diff
from mlxsteer.metrics import log_softmax, token_kl
from mlxsteer.prompts import render
from mlxsteer.steering import Steering
from mlxsteer.vector import Vector

PIRATE = "You are a pirate. Talk like a pirate in every sentence."
PLAIN = "You are a helpful assistant."
PROMPT = "Explain to a child why it rains, and where all the water goes in the end."
QUESTIONS = (
    "How was your day?",
    "Tell me about the sea.",
    "What should I cook tonight?",
    "Why is the sky blue?",
)
MIDDLE = range(10, 20)

# What may lie between the two sides, as a share of what steering does, which is 1.8 nats here. With
# weights in float32 they are less than 1e-8 nats apart, steered or not; the rest is room for other
# machines. With packed weights llama.cpp computes in 8 bits: 0.004 unsteered, 0.005 steered.
SHARE = {"packed": 0.02, "exact": 0.001}


class Ours:
    """SmolLM2 in float32, a prompt of 38 tokens, and what a pirate has more of, `[n_layers, D]`."""

    def __init__(self, path: Path) -> None:
        self.model, self.tokenizer = load(path, dtype="float32", keep_quantized=False)
        self.tokens = self.chat(PLAIN, PROMPT)
        sides = [[self.chat(side, text) for text in QUESTIONS] for side in (PIRATE, PLAIN)]
        read = [capture(self.model, side)["resid_post"] for side in sides]
        self.rows = mean_diff(*read)

    def chat(self, system: str, text: str) -> list[int]:
        turns = [{"role": "system", "content": system}, {"role": "user", "content": text}]
        return render(self.tokenizer, turns)

    def vector(self, layers: range | tuple[int, ...], scale: float) -> Vector:
        rows = {layer: scale * self.rows[layer] for layer in layers}
        return Vector.from_rows("pirate", rows, model=self.model.source)

    def logs(self, steering: Steering | None = None) -> Array:
        """Log-probabilities of the token after each token of the prompt, `[T, V]`."""
        return log_softmax(np.array(forward(self.model, self.tokens, steering=steering)))

    def written(self, steering: Steering | None = None) -> list[int]:
        """The 16 likeliest tokens after the prompt."""
        answers = stream_generate(
            self.model, self.tokenizer, self.tokens, steering=steering, max_tokens=16
        )
        return [answer.token for answer in answers]


@pytest.fixture(scope="module")
def ours(smollm2_gguf: Path) -> Ours:
    return Ours(smollm2_gguf)


@pytest.fixture(scope="module", autouse=True)
def _llama_cpp() -> None:
    try:
        library()
    except OSError as error:
        pytest.skip(f"llama.cpp cannot be opened: {error}")


@pytest.fixture(scope="module")
def packed(smollm2_gguf: Path) -> Iterator[Llama]:
    """llama.cpp on the file as it is."""
    llama = Llama(smollm2_gguf)
    yield llama
    llama.close()


@pytest.fixture(scope="module")
def exact(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Llama]:
    """llama.cpp on the same weights in float32, which it multiplies in float32."""
    path = tmp_path_factory.mktemp("float32") / "model.gguf"
    write_float32(smollm2_gguf, path)
    llama = Llama(path)
    yield llama
    llama.close()
    path.unlink()


@pytest.fixture
def control(tmp_path: Path) -> Callable[..., Array]:
    """Write a vector as a control vector file and read it with llama.cpp."""

    def through_file(vector: Vector, strength: float = 1.0) -> Array:
        path = tmp_path / "control.gguf"
        write_control_vector(vector, path)
        return control_vector(path, strength)

    return through_file


def kl(p: Array, logits: Array) -> float:
    """Mean KL of the distributions with log-probabilities `p` to those with `logits`."""
    return float(token_kl(p, log_softmax(logits)).mean())


def moved(vector: Vector, by: int) -> Vector:
    rows = {layer + by: row for layer, row in vector.rows().items()}
    return Vector.from_rows(vector.name, rows, model=vector.model)


@pytest.mark.parametrize("weights", list(SHARE))
def test_steered_alike(
    ours: Ours, control: Callable[..., Array], weights: str, request: pytest.FixtureRequest
) -> None:
    llama: Llama = request.getfixturevalue(weights)
    vector = ours.vector(MIDDLE, 0.35)
    plain, steered = ours.logs(), ours.logs(Steering((vector, 1.0)))
    effect = kl(plain, steered)
    assert effect > 1
    allowed = SHARE[weights] * effect
    unsteered = llama.logits(ours.tokens)
    assert kl(plain, unsteered) < allowed
    right = kl(steered, llama.logits(ours.tokens, control(vector)))
    assert right < allowed
    wrong = [llama.logits(ours.tokens, control(v)) for v in (moved(vector, 1), moved(vector, -1))]
    wrong += [llama.logits(ours.tokens, control(-vector)), unsteered]
    for twin in wrong:  # 0.20, 0.22, 3.1, 2.0 nats
        assert kl(steered, twin) > max(10 * right, allowed)


def test_strength_is_a_factor(ours: Ours, exact: Llama, control: Callable[..., Array]) -> None:
    vector, strength = ours.vector(MIDDLE, 0.35), -1.5
    steered = ours.logs(Steering((vector, strength)))
    allowed = SHARE["exact"] * kl(ours.logs(), steered)
    right, less, more = (
        kl(steered, exact.logits(ours.tokens, control(vector, share * strength)))
        for share in (1, 0.95, 1.05)
    )
    assert right < allowed
    assert min(less, more) > 3 * allowed  # 5% off: 0.015 nats


@pytest.mark.parametrize(("layer", "scale", "twin"), [(1, 12.0, 2), (29, 1.0, 28)])
def test_one_layer(
    ours: Ours, exact: Llama, control: Callable[..., Array], layer: int, scale: float, twin: int
) -> None:
    """The first layer that a control vector can have, and the last of the model."""
    vector = ours.vector((layer,), scale)
    steered = ours.logs(Steering((vector, 1.0)))
    effect = kl(ours.logs(), steered)
    assert effect > 0.1
    assert kl(steered, exact.logits(ours.tokens, control(vector))) < SHARE["exact"] * effect
    off = control(moved(vector, twin - layer))
    assert kl(steered, exact.logits(ours.tokens, off)) > 0.1 * effect


def test_the_same_tokens_are_written(
    ours: Ours, exact: Llama, control: Callable[..., Array]
) -> None:
    """With KV caches, one token at a time."""
    vector = ours.vector(MIDDLE, 0.35)
    written = ours.written(Steering((vector, 1.0)))
    assert written == exact.greedy(ours.tokens, 16, control(vector))
    assert written != ours.written()


def test_files_are_read_alike(tmp_path: Path) -> None:
    """Our file, and one made as repeng makes it."""
    draw = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)
    rows = {3: draw[0], 7: draw[1]}
    mine, foreign = tmp_path / "mine.gguf", tmp_path / "foreign.gguf"
    write_control_vector(Vector.from_rows("v", rows), mine, "llama")
    writer = gguf.GGUFWriter(foreign, "controlvector")
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_uint32("controlvector.layer_count", len(rows))
    for layer, row in rows.items():
        writer.add_tensor(f"direction.{layer}", row)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for path in (mine, foreign):
        control = control_vector(path)
        assert control.shape == (7, 8)  # layers 1 to 7
        read = read_control_vector(path).rows()
        assert list(read) == [3, 7]
        for layer in range(1, 8):
            np.testing.assert_allclose(control[layer - 1], read.get(layer, 0), rtol=1e-6)
            np.testing.assert_allclose(control[layer - 1], rows.get(layer, 0), rtol=1e-6)
