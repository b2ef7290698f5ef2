"""The README of a repository of vectors: Hub metadata, then what they do and are made of.

All comes from the vectors' own records and from `evaluation.json`; what was not measured is said to
be unmeasured. Text of others is inert: no HTML, no links, no Markdown of theirs. It knows nothing
of the Hub's protocol, and the same content gives the same bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from .claims import Claim, Record, claims, condition, interval
from .measured import answers, inert, layers_of, safe_range, said, shown, strengths, table
from .report import markdown_table
from .values import printable
from .vector import Vector

__all__ = ["LICENSES", "TAG", "TAGS", "Made", "Part", "library_card", "part_card"]

TAG = "mlxsteer-vector"  # only mlxsteer writes it: the filter of a search
TAGS = (
    TAG,
    "steering-vector",
    "steering-vectors",
    "activation-steering",
    "representation-engineering",
    "control-vector",
    "mlx",
)
# What the Hub calls licences; any other is "other" with its name beside it.
LICENSES = """
    afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bsd bsd-2-clause bsd-3-clause bsl-1.0 cc cc-by-2.0
    cc-by-3.0 cc-by-4.0 cc-by-nc-4.0 cc-by-nc-nd-4.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0
    cc-by-sa-4.0 cc0-1.0 cdla-permissive-2.0 cdla-sharing-1.0 gemma gfdl gpl gpl-2.0 gpl-3.0 isc
    lgpl lgpl-2.1 lgpl-3.0 llama3 llama3.1 llama3.2 llama3.3 mit mpl-2.0 odbl odc-by openrail pddl
    unlicense wtfpl zlib
""".split()  # noqa: SIM905


@dataclass(frozen=True)
class Made:
    """One vector: its file without the ending, whether a GGUF is beside it, its base model's id
    on the Hub, and the name by which mlxsteer loads that model.
    """

    vector: Vector
    stem: str
    gguf: bool
    base_model: str
    model_name: str


@dataclass(frozen=True)
class Part:
    """One concept: what it is, its vectors, what was measured and which plots there are.

    `evaluations` are the contents of `evaluation.json` files, matched to vectors by their hash.
    """

    name: str
    positive: str
    negative: str
    sign: str
    license: str
    made: tuple[Made, ...]
    evaluations: tuple[Record, ...] = ()
    plots: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    base_models: tuple[str, ...] = field(default=())


def part_card(part: Part, repo: str, prefix: str = "") -> str:
    """The card of one concept; in a library, where it lies in the folder `prefix`, no metadata."""
    head = "" if prefix else _metadata([part], repo)
    name = f"{repo}:{part.name}" if prefix else repo
    sections = [
        f"# {inert(part.name)}: {inert(part.positive)}",
        f"{inert(part.sign)}\n\nA steering vector, made with mlxsteer: it acts on the residual "
        "stream of a language model while that writes.",
        _does(part),
        *_measured(part),
        _use(part, name, repo, prefix),
        _made_of(part),
        _limits(part),
        f"## Licence\n\n{inert(part.license)}, for the vector and its contrast data. The model "
        "has a licence of its own.",
    ]
    return head + "\n\n".join(sections) + "\n"


def library_card(parts: Sequence[Part], repo: str) -> str:
    """The card of a repository with a folder per concept."""
    stood = _claims(parts)
    rows = [
        [
            f"[{part.name}]({part.name}/README.md)",
            inert(part.positive),
            inert(part.negative),
            ", ".join(f"`{made.stem}`" for made in part.made),
            *([_stands(part, stood)] if stood else []),
            inert(part.license),
        ]
        for part in parts
    ]
    head = ["concept", "positive", "negative", "vectors", "licence"]
    remark = ""
    if stood:
        head[-1:-1] = ["strength 1 less the strongest null"]
        remark = (
            "Of the completions' log-odds, nats per token, at equal KL, with intervals that are "
            "corrected over the concepts of a model (Holm). A vector passes if that is above 0 and "
            "its own evaluation says so."
        )
    example = parts[0].name
    return _metadata(parts, repo) + "\n\n".join(
        [
            "# Steering vectors",
            f"{len(parts)} concepts, a folder each: vectors, the data that they were made from, "
            "and a card that says what they do.",
            markdown_table(head, rows),
            *([remark] if remark else []),
            f"```sh\nmlxsteer generate PROMPT -s {repo}:{example}=1\n```\n",
        ]
    )


def _claims(parts: Sequence[Part]) -> dict[tuple[str, str], Claim]:
    """Return what stands, by the names of concept and vector, corrected over each model."""
    by_model: dict[str, dict[str, Record]] = {}
    for part in parts:
        for made, record in _judged(part):
            by_model.setdefault(made.stem, {})[part.name] = record
    return {
        (name, stem): claim
        for stem, library in by_model.items()
        for name, claim in claims(library).items()
    }


def _stands(part: Part, stood: dict[tuple[str, str], Claim]) -> str:
    found = [stood.get((part.name, made.stem)) for made in part.made]
    return "; ".join(
        "-"
        if claim is None
        else f"{shown(claim.difference)}: {'passes' if claim.passed else 'FAILS'}"
        for claim in found
    )


def _metadata(parts: Sequence[Part], repo: str) -> str:
    """The YAML by which the Hub finds and shows the repository."""
    bases = list(dict.fromkeys(base for part in parts for base in _bases(part)))
    licenses = sorted({part.license for part in parts})
    license = licenses[0].lower() if len(licenses) == 1 else "other"
    more: dict[str, Any] = {}
    if license not in LICENSES:
        license, more = "other", {"license_name": "; ".join(map(printable, licenses))}
    data = ModelCardData(
        library_name="mlxsteer",
        license=license,
        base_model=bases[0] if len(bases) == 1 else bases,
        base_model_relation="adapter",
        language="en",
        tags=list(TAGS),
        model_name=repo.partition("/")[2],
        eval_results=[result for part in parts for result in _results(part)] or None,
        **more,
    )
    return f"---\n{data.to_yaml()}\n---\n\n"


def _bases(part: Part) -> list[str]:
    return [*(made.base_model for made in part.made), *part.base_models]


def _results(part: Part) -> list[EvalResult]:
    """What a strength of 1 does to the completions, as the Hub's evaluation results."""
    found = []
    for made, record in _judged(part):
        effect = interval(condition(record, 1.0).get("effect"))
        if effect is not None:
            found.append(
                EvalResult(
                    task_type="text-generation",
                    dataset_type="mlxsteer-completions",
                    dataset_name=f"completions of {printable(part.name)}",
                    dataset_config=printable(part.name),  # the Hub merges results of one dataset
                    dataset_split=printable(str(record.get("split", "test"))),
                    metric_type="log-odds",
                    metric_name=f"effect of strength 1 on {made.stem}, nats per token",
                    metric_value=round(effect.mean, 4),
                )
            )
    return found


def _does(part: Part) -> str:
    rows = [
        ["-1", f"{inert(part.negative)}"],
        ["0", "nothing: the model's own bits"],
        ["+1", f"{inert(part.positive)}"],
    ]
    return f"## What it does\n\n{markdown_table(['strength', 'the model'], rows)}"


def _measured(part: Part) -> list[str]:
    """What was measured of each vector, and the plots."""
    sections = []
    for made, record in _judged(part):
        found = (said(record), table(record), answers(record))
        lines = [f"## Measured: {inert(made.stem)}", *(one for one in found if one)]
        sections.append("\n\n".join(lines))
    if not sections:  # a plot would be of another vector
        return ["## Measured\n\nWhat it does beyond its own prompts was not measured."]
    return sections + [f"![plot]({name})" for name in part.plots]


def _judged(part: Part) -> list[tuple[Made, Record]]:
    by_hash = {record.get("vector_sha256"): record for record in part.evaluations}
    return [
        (made, by_hash[made.vector.content_sha256])
        for made in part.made
        if made.vector.content_sha256 in by_hash
    ]


def _use(part: Part, name: str, repo: str, prefix: str) -> str:
    model = part.made[0].model_name
    lines = [
        "## Use",
        f'```sh\nmlxsteer generate "PROMPT" -m {model} -s {name}=1\n```',
        "```python\nfrom mlxsteer import Steering, generate, load, load_vector\n\n"
        f'model, tokenizer = load("{model}")\n'
        f'vector = load_vector("{name}", model=model.source)\n'
        'print(generate(model, tokenizer, "PROMPT", steering=Steering((vector, 1.0))))\n```',
        "`@` and a tag or commit after the repository's name pins it.",
    ]
    with_gguf = [made for made in part.made if made.gguf]
    if with_gguf:
        made = with_gguf[0]
        lines.append(
            "Without a Mac, in llama.cpp, with a GGUF of the same model:\n\n"
            f"```sh\nhf download {repo} {prefix}{made.stem}.gguf --local-dir .\n"
            f'llama-cli -m MODEL.gguf --control-vector {prefix}{made.stem}.gguf -p "PROMPT"\n```'
        )
    return "\n\n".join(lines)


def _made_of(part: Part) -> str:
    rows = []
    for made in part.made:
        vector = made.vector
        rows.append(
            [
                f"`{made.stem}.safetensors`",
                made.base_model,
                inert(vector.model.quantization if vector.model else "unknown"),
                f"{vector.op} at {vector.site}, layers {layers_of(vector)}",
                _strength_one(vector),
            ]
        )
    head = ["file", "base model", "quantization", "edit", "strength 1"]
    first = part.made[0].vector
    made_by = f"{inert(first.method)} of {first.n_pairs} pairs, read at: {inert(first.token)}."
    data = ", ".join(f"[{name}]({name})" for name in part.data)
    return (
        f"## What it is made of\n\n{markdown_table(head, rows)}\n{made_by} "
        + (f"The contrast data: {data}. " if data else "The contrast data is not in here. ")
        + f"Their sha256 in canonical form: `{first.pairs_sha256 or 'unknown'}`. "
        + "The header of each file holds the whole record, under a hash."
    )


def _strength_one(vector: Vector) -> str:
    if vector.calibration is None:
        return "not calibrated: adds its rows as stored"
    kl, tokens = vector.calibration.get("kl"), vector.calibration.get("tokens")
    nats = f"{kl:.2f}" if isinstance(kl, (int, float)) else "unknown"
    return inert(f"costs {nats} nats per token (mean KL on {tokens} neutral tokens)")


def _limits(part: Part) -> str:
    told = "; ".join(
        f"{inert(made.stem)} {strengths(safe)}"
        for made in part.made
        if (safe := safe_range(made.vector)) is not None
    )
    return (
        "## Limits\n\n- "
        + (f"Safe strengths: {told}." if told else "How far it can be pushed was not measured.")
        + "\n- It is for the model above. Another quantization of it is close, another model is "
        "not and is refused."
    )
