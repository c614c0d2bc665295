"""Hybrids from start to end: `scan --measure all` and `intervene` on models with a planted spike, through the command
line; what cannot apply says why, in the record and on the terminal."""

import numpy as np
import pytest
import torch
from shrink import build, token_ids

from spikesink.access.blocks import decoder_layers
from spikesink.records import Anatomy
from spikesink.records.interventions import Interventions

FIRST = 1
CHANNEL = 3
STEP_UP = 2


def planted(family, ids):
    """The first layer's FFN answers the first token, and others like it, with a spike in CHANNEL."""
    model = build(family)
    ffn = decoder_layers(model)[0].feed_forward
    seen = {}
    hook = ffn.gate_proj.register_forward_pre_hook(lambda _, args: seen.update(normed=args[0]))
    with torch.inference_mode():
        model(input_ids=ids[:1], use_cache=False)
    hook.remove()
    direction = seen["normed"][0, 0] / seen["normed"][0, 0].norm()
    with torch.no_grad():
        for reads in (ffn.gate_proj, ffn.up_proj):
            reads.weight[0] = 4 * direction
        ffn.down_proj.weight[:, 0] = 0
        ffn.down_proj.weight[CHANNEL, 0] = 200
    return model


def printed(ran):
    assert ran.code == 0, ran.err
    assert "Traceback" not in ran.err
    # The frame stands between the lines of a sentence.
    return " ".join(ran.out.replace("│", " ").split())


# Of bamba's three layers one attends; in falcon_h1 a recurrence stands beside the attention of every layer.
@pytest.mark.parametrize(("family", "attention_blocks"), [("bamba", {3}), ("falcon_h1", {1, 3, 5})])
def test_scan_and_intervene(family, attention_blocks, tmp_path, cli):
    ids = token_ids(6, 130)
    ids[:, 0] = FIRST
    planted(family, ids).save_pretrained(tmp_path / "model")
    np.save(tmp_path / "ids.npy", ids.numpy())
    source = (tmp_path / "model", "--tokens", tmp_path / "ids.npy")
    said = printed(cli("scan", *source, "--measure", "all", "--out", tmp_path / "scan"))
    record = Anatomy.read(tmp_path / "scan")
    assert record.summary.has_spikes
    assert {head.block for head in record.sinks.heads} == attention_blocks
    assert record.amplifier.applicable
    assert record.model_dump()["geometry"]["reason"] in said

    which = ("--which", "core,quantisation,kv_cache", "--draws", "1", "--held-out", "2")
    said = printed(cli("intervene", *source, *which, "--out", tmp_path / "intervene"))
    edited = Interventions.read(tmp_path / "intervene")
    assert (edited.found["step_up_block"], edited.found["channels"]) == (STEP_UP, [CHANNEL])
    rows = {row.name: row for row in edited.interventions}
    for name in ("zero_spikes", "freeze_spikes", "pin_spikes", "cut_amplifier", "project_out_direction"):
        assert rows[name].applicable, rows[name].reason
    # What counts as a spike is a tenth of the largest.
    assert rows["zero_spikes"].spike < 0.101 * rows["baseline"].spike
    # The constant is the mean of spike tokens of several sizes.
    assert rows["zero_spikes"].spike < rows["freeze_spikes"].spike < rows["baseline"].spike
    assert all(row.applicable or row.reason for row in edited.interventions)

    assert edited.kv_cache.applicable
    assert "recurrences and convolutions keep" in edited.kv_cache.note
    assert edited.kv_cache.note in said
    kinds = {site.kind for site in edited.quantisation.sites}
    assert {"attention_in", "attention_out", "ffn_in", "down_proj"} <= kinds
