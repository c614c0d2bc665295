"""Formats in a whole model: against a model whose inputs are rounded by hand, and what a spike takes along."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from naive import perplexity
from tiny import MARKED, spiking, token_ids

from spikesink.access import access, editing, observing, run
from spikesink.access.linears import editing_inputs, find_linears
from spikesink.analyse import formats
from spikesink.analyse.evaluation import Evaluator, evaluate
from spikesink.analyse.finding import find
from spikesink.analyse.formats import INPUTS, KV, WEIGHTS, Rounding
from spikesink.analyse.interventions import dissociate, parse_which
from spikesink.analyse.quantisation import calibrate
from spikesink.analyse.resume import FinishedPasses
from spikesink.intervene import Targets
from spikesink.measure.sinks import SinkCriteria
from spikesink.measure.states import ChannelRange
from spikesink.observer import full_batch

quantization = pytest.importorskip("compressed_tensors.quantization")

NO_TARGETS = Targets(
    has_spikes=False, spike=0.0, edit_block=2, step_up_block=None, step_down_block=None, channels=(), magnitude_min=1.0
)


def made():
    return spiking(num_hidden_layers=2, hidden_size=128, intermediate_size=256, head_dim=32)


def test_the_time_of_every_pass_is_counted(monkeypatch):
    """Those on all sequences and those on the first alone: no less than runs took, no more than asking for them did."""
    kept = Evaluator.kept
    inside: list[float] = []
    outside: list[float] = []

    def timed(times, run):
        started = time.perf_counter()
        result = run()
        times.append(time.perf_counter() - started)
        return result

    def watched(self, key, run):
        return timed(outside, lambda: kept(self, key, lambda: timed(inside, run)))

    monkeypatch.setattr(Evaluator, "kept", watched)
    monkeypatch.setattr(formats, "FORMAT_NATS", -1.0)
    ids = token_ids(sequences=5, tokens=11)
    accessed = access(made())
    evaluator = Evaluator(accessed, ids, find(accessed, ids), FinishedPasses(), SinkCriteria(), seconds=5.0)
    formats.served_formats(evaluator, ids[:2])
    assert sum(inside) <= evaluator.seconds - 5 <= sum(outside)
    assert len(inside) > 10


@pytest.fixture(scope="module")
def record():
    return dissociate(made(), token_ids(sequences=7, tokens=21), which="none,formats", held_out=3)


def test_every_format_has_a_row(record):
    rows = record.formats.rows
    assert [row.name for row in rows if row.kind == "inputs"] == list(INPUTS)
    assert [row.name for row in rows if row.kind == "kv"] == list(KV)
    assert [row.name for row in rows if row.kind == "weights"] == list(WEIGHTS)
    assert not record.quantisation.applicable
    assert parse_which("all").parts == ("quantisation", "kv_cache", "formats", "remedies")
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


def test_a_format_that_does_not_fit_is_left_out(monkeypatch):
    monkeypatch.setattr(formats, "INPUTS", ("fp8 e4m3 per 128", "fp8 e4m3 per token"))
    monkeypatch.setattr(formats, "WEIGHTS", {})
    monkeypatch.setattr(formats, "KV", {})
    record = dissociate(
        spiking(num_hidden_layers=2), token_ids(sequences=7, tokens=21), which="none,formats", held_out=3
    )
    assert record.formats.skipped == ["fp8 e4m3 per 128 of inputs: groups of 128 do not divide 24 channels"]
    assert [row.name for row in record.formats.rows] == ["fp8 e4m3 per token"]


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


def test_scales_learned_without_spikes_are_smaller():
    """Spared in a static format, a spike is in no scale; ranges by hand from the model's own inputs."""
    accessed, ids = access(made()), token_ids(sequences=3, tokens=21)
    marked = ids < MARKED
    shown = {}
    with editing_inputs(find_linears(accessed), lambda site, x: shown.setdefault(site.name, x)):
        run(accessed, full_batch(ids))
    calibration = calibrate(Evaluator(accessed, ids, NO_TARGETS, FinishedPasses(), SinkCriteria()), ids, marked)
    for name, entering in shown.items():
        ordinary, every = entering[~marked].abs().amax(0), entering.abs().flatten(0, 1).amax(0)
        assert torch.allclose(calibration.ordinary.largest[name], ordinary, atol=1e-5)
        assert torch.allclose(calibration.ranges.largest[name], every, atol=1e-5)
    first = "model.layers.0.mlp.down_proj"
    assert calibration.ranges.largest[first][0] > 20 > 1 > calibration.ordinary.largest[first][0]
    assert calibration.blocks == [1, 2, 3, 4]


def test_what_several_maps_read_is_rounded_once():
    accessed = access(made())
    rounding = Rounding("fp8 e4m3 per token", ChannelRange(), None, spare=False)
    with editing_inputs(find_linears(accessed), rounding.enter):
        run(accessed, full_batch(torch.tensor([[5, 6, 7]])))
    # By layer what enters q, k and v; o; gate and up; down.
    assert 0.99 < rounding.values / (2 * 3 * (128 + 128 + 128 + 256)) <= 1, "but for zeros"


def test_blocks_that_a_format_breaks():
    """One block at a time, its first layers taken over, against the same edit on the whole model."""
    model, ids = made(), token_ids(sequences=7, tokens=21)
    evaluator = Evaluator(access(model), ids[:4], find(model, ids[4:]), FinishedPasses(), SinkCriteria())
    baseline = evaluator.baseline()
    calibration = calibrate(evaluator, ids[4:])
    alone, _ = formats._pass(evaluator, calibration, "inputs", "mxfp4", block=3)
    rounding = Rounding("mxfp4", ChannelRange(), None, spare=False)
    sites = [site for site in find_linears(evaluator.accessed) if site.block == 3]
    with editing_inputs(sites, rounding.enter):
        expected = evaluate(evaluator.accessed, ids[:4], loss_only=True)
    assert alone.losses == pytest.approx(expected.losses, abs=1e-6)
    assert abs(alone.losses - baseline.losses).max() > 1e-4
    worst = formats._worst_blocks(evaluator, calibration, baseline, "inputs", "mxfp4")
    costs = [row.loss_difference_nats.value for row in worst]
    assert costs == sorted(costs, reverse=True) and all(row.loss_difference_nats.low > 0 for row in worst)
    for row in worst:
        again, _ = formats._pass(evaluator, calibration, "inputs", "mxfp4", block=row.block)
        assert row.loss_difference_nats.value == pytest.approx(float((again.losses - baseline.losses).mean()))


def test_sinks_are_kept_in_a_cache_too():
    targets = replace(NO_TARGETS, has_spikes=True, has_sinks=True, sink_positions=(0, 2, 99))
    evaluator = Evaluator(access(made()), token_ids(2, 5), targets, FinishedPasses(), SinkCriteria())
    spikes = torch.zeros(2, 5, dtype=torch.bool)
    spikes[1, 4] = True
    assert formats._kept_in_cache(evaluator, spikes).nonzero().tolist() == [[0, 0], [0, 2], [1, 0], [1, 2], [1, 4]]
    assert int(spikes.sum()) == 1
