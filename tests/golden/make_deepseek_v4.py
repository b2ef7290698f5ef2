"""Make `deepseek_v4.npz`: what transformers' DeepSeek-V4 computes with the weights of
`tiny_deepseek`, in float32: logits, the four taps and steered runs. No weights are downloaded.

    .venv/bin/python -m pip install torch==2.13.0      # in an environment that may be thrown away
    PYTHONPATH=.:tests .venv/bin/python tests/golden/make_deepseek_v4.py

The committed file was made with torch 2.13.0 (CPU) and transformers 5.23.0. The script also prints
how close the scores at the edge of each top-k are: a tie there would let two right answers differ.
"""

# mypy: ignore-errors

import re
from pathlib import Path

import numpy as np
from tiny_deepseek import (
    CONFIG,
    LAYERS,
    LONG_AT,
    PROMPT,
    RELEASED,
    SEED,
    TOTAL,
    WIDTH,
    draw,
    long_ids,
)

import torch  # isort: skip
from transformers import DeepseekV4Config, DeepseekV4ForCausalLM, DynamicCache

# transformers' names -> the official ones; the order matters
OFFICIAL = [
    (r"^model\.", ""),
    (r"^lm_head\.", "head."),
    (r"^embed_tokens\.", "embed."),
    (r"^hc_head\.hc_", "hc_head_"),
    (r"\.self_attn\.compressor\.indexer\.scorer\.weights_proj\.", ".attn.indexer.weights_proj."),
    (r"\.self_attn\.compressor\.indexer\.q_b_proj\.", ".attn.indexer.wq_b."),
    (r"\.self_attn\.compressor\.indexer\.", ".attn.indexer.compressor."),
    (r"\.self_attn\.", ".attn."),
    (r"\.mlp\.", ".ffn."),
    (r"\.compressor\.kv_norm\.", ".compressor.norm."),
    (r"\.position_bias$", ".ape"),
    (r"\.q_a_norm\.", ".q_norm."),
    (r"\.q_a_proj\.", ".wq_a."),
    (r"\.q_b_proj\.", ".wq_b."),
    (r"\.kv_proj\.", ".wkv."),
    (r"\.compressor\.gate_proj\.", ".compressor.wgate."),
    (r"\.o_a_proj\.", ".wo_a."),
    (r"\.o_b_proj\.", ".wo_b."),
    (r"\.sinks$", ".attn_sink"),
    (r"\.input_layernorm\.", ".attn_norm."),
    (r"\.post_attention_layernorm\.", ".ffn_norm."),
    (r"\.(attn|ffn)_hc\.", r".hc_\1_"),
    (r"\.e_score_correction_bias$", ".bias"),
    (r"\.shared_experts\.gate_proj\.", ".shared_experts.w1."),
    (r"\.shared_experts\.down_proj\.", ".shared_experts.w2."),
    (r"\.shared_experts\.up_proj\.", ".shared_experts.w3."),
]
SITES = ("attn_out", "resid_mid", "mlp_out", "resid_post")
AT = [0, 3, 7, 8, 15, 16, 40, 41, 47, 52]  # tokens around every kind of boundary


def official_name(name):
    for pattern, new in OFFICIAL:
        name = re.sub(pattern, new, name)
    return name


def build(**changes):
    config = DeepseekV4Config.from_dict({**CONFIG, **changes})
    config._attn_implementation = config._experts_implementation = "eager"
    model = DeepseekV4ForCausalLM(config).eval()
    experts = range(config.n_routed_experts)
    for name, parameter in model.state_dict().items():
        one, shape = official_name(name), tuple(parameter.shape)
        base = one.rpartition(".")[0]
        if name.endswith("experts.gate_up_proj"):  # [E, 2 I, D] is w1 over w3
            half = (shape[1] // 2, shape[2])
            rows = [[draw(f"{base}.{e}.{w}.weight", half) for w in ("w1", "w3")] for e in experts]
            value = np.stack([np.concatenate(row) for row in rows])
        elif name.endswith("experts.down_proj"):
            value = np.stack([draw(f"{base}.{e}.w2.weight", shape[1:]) for e in experts])
        else:
            value = draw(one, shape)
        parameter.copy_(torch.from_numpy(value))
    return model


def run(model, ids, splits, edit=lambda layer, site, x: x):
    """Return logits, and what is at the taps, with the tokens given in pieces."""
    seen, handles = {}, []

    def after(layer, site):
        def hook(module, args, out):
            value = edit(layer, site, out[0] if isinstance(out, tuple) else out)
            seen.setdefault(f"{layer}.{site}", []).append(value.numpy().copy())
            return (value, *out[1:]) if isinstance(out, tuple) else value

        return hook

    def before(layer):  # the residual in the middle is what the second mixture reads
        def hook(module, args):
            seen.setdefault(f"{layer}.resid_mid", []).append(args[0].numpy().copy())

        return hook

    for i, layer in enumerate(model.model.layers):
        for module, site in ((layer.self_attn, "attn_out"), (layer.mlp, "mlp_out")):
            handles.append(module.register_forward_hook(after(i, site)))
        handles.append(layer.register_forward_hook(after(i, "resid_post")))
        handles.append(layer.ffn_hc.register_forward_pre_hook(before(i)))
    past, out, start = DynamicCache(config=model.config), [], 0
    for count in splits:
        piece = ids[:, start : start + count]
        out.append(model(piece, past_key_values=past, use_cache=True).logits.numpy())
        start += count
    for handle in handles:
        handle.remove()
    return np.concatenate(out, 1), {k: np.concatenate(v, 1) for k, v in seen.items()}


def print_margins(model, ids):
    """Print the least distance between the last that is chosen and the first that is not."""
    least = {"indexer": np.inf, "router": np.inf}

    def note(kind, scores, top):
        found = scores.sort(-1, descending=True).values
        least[kind] = min(least[kind], (found[..., top - 1] - found[..., top]).min().item())

    def on_indexer(module, args, out):
        top = CONFIG["index_topk"]
        for token in range(out.shape[1]):
            if (ready := (token + 1) // 4) > top:
                note("indexer", out[:, token, :ready], top)

    def on_router(module, args, out):
        scores = torch.nn.functional.softplus(out[0]).sqrt() + module.e_score_correction_bias
        note("router", scores, CONFIG["num_experts_per_tok"])

    for layer in model.model.layers:
        if getattr(layer.self_attn.compressor, "indexer", None) is not None:
            layer.self_attn.compressor.indexer.scorer.register_forward_hook(on_indexer)
        if not layer.mlp.is_hash:
            layer.mlp.gate.register_forward_hook(on_router)
    model(ids, use_cache=False)
    print("margins of the top-k:", least)


@torch.no_grad()
def main():
    torch.set_num_threads(1)
    model = build()
    rng = np.random.default_rng([SEED, 1])
    ids = torch.from_numpy(rng.integers(2, CONFIG["vocab_size"], (2, TOTAL)))
    dirs = rng.standard_normal((LAYERS, WIDTH)).astype(np.float32)
    dirs /= np.linalg.norm(dirs, axis=-1, keepdims=True)
    step = [PROMPT, *[1] * (TOTAL - PROMPT)]
    logits, taps = run(model, ids[:1], [TOTAL])

    def removing(**scales):
        """ds4's edit at its two places."""

        def edit(layer, site, y):
            d = torch.from_numpy(dirs[layer])
            return y - scales.get(site, 0.0) * (y @ d)[..., None] * d

        return edit

    def adding(layer, site, y):
        return y + torch.from_numpy(dirs[2]) if (layer, site) == (2, "resid_post") else y

    edits = {
        "ffn1": removing(mlp_out=1.0),
        "attn1": removing(attn_out=1.0),
        "both": removing(attn_out=2.0, mlp_out=-1.0),
        "add2": adding,
    }
    out = {"ids": ids.numpy(), "logits": logits, "dirs": dirs, "at": np.array(AT)}
    for name, edit in edits.items():
        out[f"steer.{name}"] = run(model, ids[:1], step, edit)[0][:, PROMPT:]
    for layer in range(LAYERS):
        out |= {f"{layer}.{site}": taps[f"{layer}.{site}"][:, AT] for site in SITES}
    long = build(**RELEASED)(torch.from_numpy(long_ids()), use_cache=False).logits
    out["long"] = long[:, LONG_AT].numpy()
    np.savez_compressed(Path(__file__).parent / "deepseek_v4.npz", **out)
    print_margins(model, ids[:1])


if __name__ == "__main__":
    main()
