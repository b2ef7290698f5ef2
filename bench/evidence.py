"""How long the evidence for a vector takes: its strength found, and all that is measured of it.

    python bench/evidence.py [MODEL] [--json FILE]

Of the shipped vectors one is taken for every block at which they begin: the lower it is, the more
blocks are read under every steering. Prints the seconds of `calibrate` (from the scale that the
data gave, safe range and all) and of `evaluate` with all other shipped vectors at hand, as
`mlxsteer eval` has it, without its loading of the model, about 5 s.
"""

import time

import numpy as np
from common import parser, save

import mlxsteer
from mlxsteer.calibrate import calibrate
from mlxsteer.evaluate import evaluate
from mlxsteer.grid import spelled
from mlxsteer.library import concepts
from mlxsteer.neutral import Neutral
from mlxsteer.progress import bars
from mlxsteer.vector import read_vector


def main() -> None:
    options = parser(__doc__).parse_args()
    model, tokenizer = mlxsteer.load(options.model)
    shipped = {}
    for each in concepts():
        if (path := each.vector_path(options.model)) is not None:
            shipped[each.name] = (each, read_vector(path))
    picked = {v.layers[0]: name for name, (_, v) in sorted(shipped.items(), reverse=True)}
    figures = {}
    with bars() as progress:
        text = Neutral.kept(model, tokenizer, progress=progress)
        for _, name in sorted(picked.items()):
            concept, vector = shipped[name]
            natural = np.array((vector.calibration or {})["natural_scale"], np.float32)
            data = vector.replace(scales=natural, calibration=None)
            start = time.perf_counter()
            calibrate(
                model, tokenizer, data, neutral=text, recipe=concept.recipe, progress=progress
            )
            middle = time.perf_counter()
            others = [v for other, (_, v) in shipped.items() if other != name]
            evaluate(model, tokenizer, vector, concept, others=others, progress=progress)
            calibrating, evaluating = middle - start, time.perf_counter() - middle
            layers = spelled(vector.layers)
            print(
                f"{name} (layers {layers}): calibration {calibrating:.0f} s, evaluation "
                f"{evaluating:.0f} s"
            )
            figures[name] = {"layers": layers, "calibrate": calibrating, "evaluate": evaluating}
    save(options.json, model, figures)


if __name__ == "__main__":
    main()
