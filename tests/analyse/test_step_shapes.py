"""The step rule on copies of the seven models of Sun et al. 2026, table 1: as many blocks, spikes planted in theirs."""

import pytest
import torch
from tiny import tiny, token_ids

from spikesink import scan
from spikesink.access import access

TABLE_1 = {
    "Llama-2-7B": (64, [4], [62]),
    "Llama-2-13B": (80, [8], [78, 79]),
    "Llama-3-8B": (64, [4], [64]),
    "Qwen2.5-7B": (56, [8, 10], [54, 55]),
    "Qwen2.5-14B": (96, [10], [90, 92, 94, 95]),
    "Qwen3-8B": (72, [14], [70, 72]),
    "Qwen3-14B": (80, [14], [79]),
}
PARTS = {1: [1.0], 2: [0.3, 0.7], 4: [0.15, 0.4, 0.2, 0.25]}
"""How several blocks divide the rise, and the fall, among them: unevenly."""
SIZES = {5: 900.0, 17: -400.0}
"""By channel."""


def plant(model, block, share):
    """Let this block add a share of the spike to the first token's state."""
    layer = model.model.layers[(block - 1) // 2]

    def add(_module, _arguments, output):
        hidden = output[0] if isinstance(output, tuple) else output
        for channel, size in SIZES.items():
            hidden[:, 0, channel] += share * size
        return output

    return (layer.self_attn if block % 2 else layer.mlp).register_forward_hook(add)


@pytest.mark.parametrize("name", TABLE_1)
def test_the_rule_names_the_blocks_of_table_1(name):
    blocks, up, down = TABLE_1[name]
    model = tiny("llama", num_hidden_layers=blocks // 2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.div_(12.0)
    shares = dict(zip(up, PARTS[len(up)], strict=True)) | {
        block: -part for block, part in zip(down, PARTS[len(down)], strict=True)
    }
    # Below the rule: small contributions of either sign in front, between and behind, as trained models have.
    for block, share in {1: 0.06, max(up) + 1: -0.05, max(up) + 4: 0.03, min(down) - 1: -0.06}.items():
        shares.setdefault(block, share)
    for block, share in shares.items():
        plant(model, block, share)
    record = scan(access(model), token_ids(sequences=3, tokens=11), batch_size=2)
    assert record.summary.step_up_blocks == up
    assert record.summary.step_down_blocks == down
    assert record.summary.spike_channels == [5, 17]
    assert [token.position for token in record.summary.spike_tokens] == [0, 0, 0]
    measured = {cycle.block: cycle.share_of_plateau for cycle in record.lifecycle.blocks}
    # Of the plateau: what the blocks up to the largest residual add up to.
    plateau = sum(share for block, share in shares.items() if block <= record.spikes.verdict_block)
    for block, share in shares.items():
        assert measured[block] == pytest.approx(share / plateau, abs=0.01)
