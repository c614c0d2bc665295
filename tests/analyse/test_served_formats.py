"""Formats in a whole model: against a model whose inputs are rounded by hand, and what a spike takes along."""

import numpy as np
import pytest
import torch
from naive import perplexity
from tiny import spiking, token_ids

from spikesink.access import access, editing, observing, run
from spikesink.access.linears import find_linears
from spikesink.analyse.formats import Rounding
from spikesink.analyse.interventions import dissociate, parse_which
from spikesink.intervene.formats import FORMATS
from spikesink.measure.states import ChannelRange
from spikesink.observer import full_batch

quantization = pytest.importorskip("compressed_tensors.quantization")


def made():
    return spiking(num_hidden_layers=2, hidden_size=128, intermediate_size=256, head_dim=32)


@pytest.fixture(scope="module")
def record():
    return dissociate(made(), token_ids(sequences=7, tokens=21), which="formats", held_out=3)


def test_every_format_has_a_row(record):
    names = [row.name for row in record.formats.rows if row.kind == "inputs"]
    assert names == list(FORMATS)
    assert not record.quantisation.applicable
    assert parse_which("all").parts == ("quantisation", "kv_cache", "formats")
    assert "formats" not in parse_which(None).parts


@pytest.mark.parametrize(
    ("preset", "name"),
    [("FP8_DYNAMIC", "fp8 e4m3 per token"), ("FP8_BLOCK", "fp8 e4m3 per 128"), ("MXFP8", "mxfp8"), ("MXFP4", "mxfp4")],
)
def test_the_loss_is_that_of_a_model_that_the_library_quantised(record, preset, name):
    model, ids = made(), token_ids(sequences=7, tokens=21)[:4]
    scheme = quantization.preset_name_to_scheme(preset, ["Linear"])
    scheme.weights = None
    config = quantization.QuantizationConfig(
        config_groups={"group": scheme}, ignore=["lm_head"], quantization_status="frozen"
    )
    quantization.apply_quantization_config(model, config)
    with torch.no_grad():
        expected = perplexity(model(ids).logits, ids)
    row = next(row for row in record.formats.rows if (row.kind, row.name) == ("inputs", name))
    assert row.perplexity.value == pytest.approx(expected, rel=1e-4)
    assert abs(row.loss_difference_nats.value) > 1e-6, "it is not the plain model's"


def test_a_format_that_does_not_fit_is_left_out():
    record = dissociate(spiking(num_hidden_layers=2), token_ids(sequences=7, tokens=21), which="formats", held_out=3)
    assert "fp8 e4m3 per 128 of inputs: groups of 128 do not divide 24 channels" in record.formats.skipped
    assert "fp8 e4m3 per token" in [row.name for row in record.formats.rows]


def test_values_that_are_lost_are_counted():
    """One tensor by hand: 448 makes the scale one, so that less than 2**-6 is lost; zeros were nothing before."""
    marked = torch.tensor([[True, False, False]])
    accessed = access(spiking(num_hidden_layers=2))
    entering = torch.tensor([[[448.0, 1.0, 0.001, 0.0], [1.0, 0.01, 0.001, 0.0], [2.0, -0.0155, 1.0, 0.0]]])
    for spare, values, lost in ((False, 6, 2), (True, 6, 0)):
        rounding = Rounding("fp8 e4m3 per tensor", ChannelRange(), marked, spare)
        with editing(accessed, rounding), observing(accessed, []):
            run(accessed, full_batch(torch.tensor([[5, 6, 7]])))
        rounded = rounding.rounded("site", entering)
        assert (rounding.values, rounding.lost) == (values, lost)
        assert torch.equal(rounded[0, 0], entering[0, 0]) == spare
        assert find_linears(accessed)


def test_a_spike_takes_ordinary_values_along(record):
    """With one scale a tensor; hardly with one a token."""
    rows = {row.name: row for row in record.formats.rows if row.kind == "inputs"}
    whole, token = rows["fp8 e4m3 per tensor"], rows["fp8 e4m3 per token"]
    assert whole.lost > whole.lost_without_spikes
    assert token.lost == pytest.approx(token.lost_without_spikes, abs=1e-3)
    assert np.isfinite([row.loss_difference_nats.value for row in record.formats.rows]).all()
