"""Layers without attention, and blocks that several modules write: measured where they are, and nothing pretended."""

import numpy as np
import pytest
import torch
from shrink import OVERRIDES, build, token_ids

from spikesink import scan
from spikesink.access import access, editing, full_batch, observing, run
from spikesink.access.gated_ffn import gated_ffns
from spikesink.access.linears import find_linears
from spikesink.access.verify import verify_all
from spikesink.access.watching import Additivity
from spikesink.analyse.readings import anatomy_sums
from spikesink.errors import VerificationError

ATTENDS = 3
"""The attention block among layers linear, full, linear."""


@pytest.fixture(scope="module")
def hybrid():
    return access(build("qwen3_5_text"))


def test_only_the_layers_that_attend_have_sinks(hybrid):
    assert [sites.kind for sites in hybrid.blocks()] == ["mixer", "ffn", "attention", "ffn", "mixer", "ffn"]
    assert [sites.place for sites in hybrid.blocks()][:3] == [
        "1 (layer 0, mixer)",
        "2 (layer 0, FFN)",
        "3 (layer 1, attention)",
    ]
    assert hybrid.hybrid
    assert hybrid.provenance["attention_layers"] == 1
    record = scan(hybrid, token_ids(3, 13), epsilon=0.2)
    assert {head.block for head in record.sinks.heads} == {ATTENDS}
    assert record.summary.head_count == 4
    assert record.arrays["attention_blocks"].tolist() == [ATTENDS]
    assert record.arrays["key_importance"].shape == (1, 4, 13)
    assert [block.kind for block in record.lifecycle.blocks] == [sites.kind for sites in hybrid.blocks()]
    assert all(block.resid_top3 for block in record.lifecycle.blocks)


def test_verify_says_which_layers_do_not_attend(hybrid):
    record = verify_all(hybrid, tokens=40)
    assert record.verified
    assert record.keys_seen == [None, 40, None]
    assert any("recurrences and convolutions" in said for said in record.not_guaranteed)
    assert next(check for check in record.checks if check.name == "maps").by_layer[0] is None


def test_a_config_that_declares_no_attention():
    model = build("qwen3_5_text")
    model.config.layer_types = ["linear_attention"] * 3
    with pytest.raises(VerificationError, match="No layer of the model attends"):
        access(model)


def test_readings_of_a_layer_without_attention(hybrid):
    readings = anatomy_sums(hybrid, token_ids(3, 13)).readings()
    assert {"layer_1/sink_ratio", "layer_0/spike", "layer_2/spike", "sink_ratio"} <= readings.keys()
    assert "layer_0/sink_ratio" not in readings
    assert all(np.isfinite(value) for value in readings.values())


def test_a_recurrence_beside_attention_makes_a_hybrid():
    accessed = access(build("falcon_h1"))
    assert accessed.hybrid
    assert len(accessed.attending) == accessed.n_layers
    assert access(build("inkling_text")).hybrid, "a convolution behind attention"
    blocks = {(site.block, site.kind) for site in find_linears(accessed)}
    assert {(2, "ffn_in"), (2, "down_proj"), (1, "attention_in"), (1, "attention_out")} <= blocks


@pytest.mark.parametrize("family", ["granitemoehybrid", "granitemoeshared", "deepseek_v3", "glm4_moe"])
def test_a_shared_expert_is_not_the_ffn(family):
    """Beside routed experts, its projections were taken for the block's: cut and quantised, and the rest left."""
    accessed = access(build(family))
    for layer in accessed.layers:
        sites = [site for site in find_linears(accessed) if site.block == layer.ffn.block]
        # The first layers of some families are dense.
        dense = not any("expert" in name for name, _ in layer.layer.named_modules()) and len(layer.ffn.writers) == 1
        assert bool(sites) == dense


def test_gated_ffns_under_other_names(monkeypatch):
    """LFM2 calls its gate, up and down projections w1, w3 and w2; what is extracted is held against the module."""
    monkeypatch.setitem(OVERRIDES, "lfm2", {"layer_types": ["conv", "full_attention", "conv"]})
    accessed = access(build("lfm2"))
    assert accessed.hybrid
    (ffn,) = gated_ffns(accessed, 2)
    module = accessed.layers[0].ffn.inner
    torch.testing.assert_close(ffn.down, module.w2.weight.detach())
    assert ffn.gate.shape == module.w1.weight.shape


def test_the_recurrence_has_no_quantisation_sites(hybrid):
    blocks = {site.block for site in find_linears(hybrid)}
    assert ATTENDS in blocks
    assert not blocks & {1, 5}


@pytest.mark.parametrize("family", ["granitemoeshared", "falcon_h1"])
def test_a_block_that_two_modules_write(family):
    """The write is their sum; scaled by an editor, the residual is what it would be if the block wrote that."""
    accessed = access(build(family))
    block = 2 if family == "granitemoeshared" else 1
    assert len(accessed.blocks()[block - 1].writers) == 2
    ids = full_batch(token_ids(2, 7))

    class Half:
        def edit_write(self, at, write):
            return 0.5 * write if at == block else write

    class Keep:
        def __init__(self):
            self.residuals, self.writes = {}, {}

        def on_residual(self, at, hidden):
            self.residuals[at] = hidden.clone()

        def on_write(self, at, write):
            self.writes[at] = write.clone()

    plain, edited, sums = Keep(), Keep(), Additivity(accessed)
    with observing(accessed, [plain]):
        run(accessed, ids)
    with editing(accessed, Half()), observing(accessed, [edited, sums]):
        run(accessed, ids)
    expected = plain.residuals[block - 1] + 0.5 * plain.writes[block]
    torch.testing.assert_close(edited.writes[block], 0.5 * plain.writes[block], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(edited.residuals[block], expected, rtol=1e-4, atol=1e-4)
    assert max(sums.differences.values()) < 1e-5
