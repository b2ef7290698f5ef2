"""`mlxsteer calibrate`: a vector in, the same vector with a strength that means something out."""

import math
from pathlib import Path

import click

from .options import ModelChoice, check_output, model_options, say

__all__ = ["command"]


@click.command("calibrate")
@click.argument("vector")
@model_options
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The new vector file.  [default: VECTOR itself]",
)
@click.option(
    "--budget", default=0.5, show_default=True, help="Nats per written token at strength 1."
)
def command(vector: str, model: ModelChoice, output: Path | None, budget: float) -> None:
    """Fix the scale of VECTOR (a .safetensors or .gguf file, or one on the Hub) for a model.

    Strength 1 is then where the model's own answers to neutral prompts are --budget nats per token
    away from the unsteered model (mean KL).

    \b
    Example:
      mlxsteer calibrate imported.gguf -m llama-3.2-1b -o mine.safetensors
    """
    from ..errors import UsageError
    from ..library import Concept
    from ..progress import bars
    from ..vector import Vector
    from .sources import find_vector, load_model, read_shared

    if not (math.isfinite(budget) and budget > 0):
        raise UsageError(f"--budget {budget}: use a number of nats above 0, such as 1")
    found = find_vector(vector)
    if isinstance(found, Concept):
        raise UsageError(f"{vector} is a concept: mlxsteer extract {vector} makes a calibrated one")
    path = output or Path(vector)
    if output is None and path.suffix != ".safetensors":
        raise UsageError(f"{vector} cannot hold a calibration: name a .safetensors with -o")
    check_output(path, ".safetensors")
    from ..calibrate import calibrate
    from ..extract import model_ref
    from ..runtime import check_steering
    from ..steering import Steering
    from .extract import summary

    with bars() as progress:
        loaded, tokenizer = load_model(model, progress)
        if not isinstance(found, Vector):
            found = read_shared(found, model_ref(loaded), progress)
        check_steering(loaded, Steering((found, 1.0)))
        fixed = calibrate(loaded, tokenizer, found, budget=budget, progress=progress)
    if fixed.model is None:
        fixed = fixed.replace(model=model_ref(loaded))
    fixed.save(path)
    say(summary(fixed))
    click.echo(path)
