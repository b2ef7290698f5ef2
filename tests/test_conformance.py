"""Every architecture of mlx-lm, adopted: `make conformance` runs this and writes the page."""

from pathlib import Path

import pytest
from adopted import (
    check_against_a_changed_model,
    check_half,
    check_nodes,
    check_pieces,
    check_plain,
    check_rows,
    check_site,
    pair,
    sites_of,
)
from tiny import CONFIGS
from zoo import ARCHITECTURES, HELPERS, LEFT_OUT, ONLY_FLOAT32, build, config, modules
from zoo import sites_of as sites_in_data

from mlxsteer.adopt import adopt
from mlxsteer.errors import MlxsteerError

pytestmark = pytest.mark.conformance

TABLE_NOTES = (
    """
A dash is a site that no layer of the architecture has; where only some layers have it, those are
tested. `as plain`: bits, nodes and caches of mlx-lm's own. A site: an edit in each layer changes it
by exactly the edit, all layers above, none below; turned round it moves the logits the other way;
at strength 0 it does nothing. `changed model`: as mlx-lm's own with a block that adds the edit by
itself. `pieces`: whole, in chunks and token by token. `rows`: three strengths in one batch.
`nodes`: at most one more for each site. `bfloat16`: the self-test, and that dtypes are kept; a dash
there is a model that a CPU cannot run in half precision.

Left out of """
    + f"{len(ARCHITECTURES) + len(LEFT_OUT)}:\n\n"
    + "".join(f"- {name}: {reason}\n" for name, reason in sorted(LEFT_OUT.items()))
)


def column(name: str) -> pytest.MarkDecorator:
    return pytest.mark.table("Architectures", "architecture", name, page="architectures")


EACH = pytest.mark.parametrize("architecture", ARCHITECTURES)


def test_every_module_of_mlx_lm_is_accounted_for() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    assert f"{len(ARCHITECTURES)} architectures of mlx-lm" in readme
    assert set(ARCHITECTURES) | set(LEFT_OUT) | set(HELPERS) == set(modules())
    assert len(ARCHITECTURES) >= 100
    assert set(CONFIGS) <= set(ARCHITECTURES)


@EACH
@column("as plain")
def test_plain(architecture: str) -> None:
    model, theirs = pair(architecture)
    check_plain(model, theirs)
    assert sites_of(model) == sites_in_data(architecture)
    assert len(model.layers) == model.args.num_hidden_layers == len(model.sites)


@column("attn_out")
@pytest.mark.parametrize(
    "architecture", [a for a in ARCHITECTURES if "attn_out" in sites_in_data(a)]
)
def test_attn_out(architecture: str) -> None:
    check_site(pair(architecture)[0], "attn_out")


@column("resid_mid")
@pytest.mark.parametrize(
    "architecture", [a for a in ARCHITECTURES if "resid_mid" in sites_in_data(a)]
)
def test_resid_mid(architecture: str) -> None:
    check_site(pair(architecture)[0], "resid_mid")


@column("mlp_out")
@pytest.mark.parametrize(
    "architecture", [a for a in ARCHITECTURES if "mlp_out" in sites_in_data(a)]
)
def test_mlp_out(architecture: str) -> None:
    check_site(pair(architecture)[0], "mlp_out")


@EACH
@column("resid_post")
def test_resid_post(architecture: str) -> None:
    check_site(pair(architecture)[0], "resid_post")


@EACH
@column("changed model")
def test_against_a_changed_model(architecture: str) -> None:
    check_against_a_changed_model(*pair(architecture))


@EACH
@column("pieces")
def test_pieces(architecture: str) -> None:
    check_pieces(pair(architecture)[0])


@EACH
@column("rows")
def test_rows(architecture: str) -> None:
    check_rows(pair(architecture)[0])


@EACH
@column("nodes")
def test_nodes(architecture: str) -> None:
    check_nodes(architecture)


@column("bfloat16")
@pytest.mark.parametrize("architecture", [a for a in ARCHITECTURES if a not in ONLY_FLOAT32])
def test_half_precision(architecture: str) -> None:
    check_half(architecture)


def test_what_is_refused_is_refused_by_name() -> None:
    with pytest.raises(MlxsteerError, match=r"'iquestloopcoder' are not steered: it runs"):
        adopt(build("iquestloopcoder"))
    assert config("muse_spark")["text_config"]["layer_types"]
