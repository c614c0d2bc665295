"""What may not change a number, and by how much what may does: repetition, batches, row blocks, ranks, dtype.

The tolerances here are the ones that docs/verify.md states.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny, token_ids

from spikesink import scan
from spikesink.access import access, attention
from spikesink.analyse.readings import anatomy_sums, merged
from spikesink.errors import NumericError
from spikesink.train import AnatomyMonitor

SOURCE = Path(__file__).parent.parent / "src"
FAMILIES = ["llama", "gemma2", "gpt_oss", "gpt_neox", "opt"]
RELATIVE = 1e-5
"""What batch size and row blocks may change in float32: the order of sums, nothing else."""
HALF = {
    torch.bfloat16: {"spike": 0.03, "sink_ratio": 0.06, "loss_nats": 0.05},
    torch.float16: {"spike": 0.005, "sink_ratio": 0.01, "loss_nats": 0.01},
}
"""Largest difference from float32 on the embedded model: spike relative, sink ratio and loss absolute."""


def same_numbers(record, reference, relative=RELATIVE):
    """All that a scan says, floats within `relative`."""
    for name, expected in reference.summary.model_dump().items():
        value = getattr(record.summary, name)
        if isinstance(expected, float):
            assert value == pytest.approx(expected, rel=relative), name
        elif name != "spike_tokens":
            assert value == expected, name
    for name, expected in reference.arrays.items():
        np.testing.assert_allclose(record.arrays[name], expected, rtol=10 * relative, atol=relative, err_msg=name)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("numbers")
    tiny("llama", max_position_embeddings=128).save_pretrained(folder / "model")
    np.save(folder / "ids.npy", token_ids(5, 40).numpy())
    return folder


COMMANDS = [
    ["scan", "model", "--tokens", "ids.npy", "--measure", "all", "--out", "out/scan"],
    ["verify", "model", "--seq-len", "30", "--out", "out/verify"],
]
EACH = """
import sys
from spikesink.cli.main import run
for arguments in {commands}:
    sys.argv = ["spikesink", *arguments, "--json"]
    try:
        run()
    except SystemExit as ended:
        assert not ended.code
"""


def test_the_same_command_twice_writes_the_same_bytes(checkpoint):
    """In two processes with different hash seeds, since sets and dictionaries are where order hides."""
    made = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONPATH": str(SOURCE), "PYTHONHASHSEED": seed}
        code = [sys.executable, "-c", EACH.format(commands=COMMANDS)]
        subprocess.run(code, cwd=checkpoint, env=environment, check=True, stdout=subprocess.DEVNULL)
        out = checkpoint / "out"
        # The page shows the timing too.
        records = (path for path in sorted(out.glob("*/*")) if path.suffix != ".html")
        made.append({str(path.relative_to(out)): path.read_bytes() for path in records})
        shutil.rmtree(out)
    first, second = made
    assert list(first) == list(second)
    assert len(first) == 4
    for name in first:
        if name.endswith(".json"):
            one, other = (json.loads(each[name]) for each in made)
            assert one.pop("timing").keys() == other.pop("timing").keys()
            assert json.dumps(one) == json.dumps(other)
        else:
            assert first[name] == second[name]
            assert len(first[name]) > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_the_batch_size_changes_nothing(family):
    accessed, ids = access(tiny(family)), token_ids(5, 13)
    reference = scan(accessed, ids, epsilon=0.2, batch_size=1)
    for batch_size in (2, 5):
        same_numbers(scan(accessed, ids, epsilon=0.2, batch_size=batch_size), reference)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_row_blocks_change_nothing(family, monkeypatch):
    accessed, ids = access(tiny(family)), token_ids(3, 70)
    reference = scan(accessed, ids, epsilon=0.2)
    for rows in (1, 7, 64):
        monkeypatch.setattr(attention.Call, "row_step", lambda _call, rows=rows: rows)
        same_numbers(scan(accessed, ids, epsilon=0.2), reference)


@pytest.mark.parametrize("sequences", [7, 8, 9])
def test_the_number_of_ranks_changes_nothing(sequences):
    """Every sequence counts once, also where the ranks do not divide them."""
    monitor = AnatomyMonitor(tiny("llama"), token_ids(sequences, 13), epsilon=0.2)
    whole = anatomy_sums(access(tiny("llama")), token_ids(sequences, 13), epsilon=0.2).readings()
    for world in (2, 3, 5):
        shares = [monitor._share(rank, world) for rank in range(world)]
        assert sum(share.sequences for share in shares) == sequences
        assert merged(shares).readings() == pytest.approx(whole, rel=RELATIVE)


def test_ranks_run_the_same_number_of_passes(monkeypatch):
    """Sharded models gather their weights together: a rank that stops early would leave the others waiting."""
    monitor = AnatomyMonitor(tiny("llama"), token_ids(7, 13))
    honest = AnatomyMonitor._probe
    for world in (2, 3, 4, 7):
        passes = []
        for rank in range(world):
            rows = []
            monkeypatch.setattr(
                AnatomyMonitor, "_probe", lambda self, ids, rows=rows: rows.append(len(ids)) or honest(self, ids)
            )
            monitor._share(rank, world)
            passes.append(rows)
        assert len({tuple(rows) for rows in passes}) == 1, passes


@pytest.mark.embedded
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_half_precision_is_within_its_tolerance(embedded_copy, golden_ids, dtype):
    reference, model = embedded_copy
    record = scan(access(model.to(dtype)), golden_ids[:4])
    limits = HALF[dtype]
    assert record.summary.spike == pytest.approx(reference.summary.spike, rel=limits["spike"])
    assert abs(record.summary.sink_ratio - reference.summary.sink_ratio) <= limits["sink_ratio"]
    loss, expected = (np.log(each.summary.perplexity) for each in (record, reference))
    assert abs(loss - expected) <= limits["loss_nats"]
    for name in ("spike_block", "spike_channel", "has_spikes", "has_sinks", "step_up_blocks"):
        assert getattr(record.summary, name) == getattr(reference.summary, name), name


@pytest.fixture
def embedded_copy(embedded, golden_ids):
    import copy

    return scan(embedded, golden_ids[:4]), copy.deepcopy(embedded.model)


def planted(spike, dtype):
    """A Llama whose second FFN writes `spike` into one channel of every token."""
    model = tiny("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.zero_()
    write = model.model.layers[1].mlp.forward

    def spiking(hidden):
        output = write(hidden)
        output[..., 5] += spike
        return output

    model.model.layers[1].mlp.forward = spiking
    return model.to(dtype)


def test_a_spike_within_float16_is_measured_and_one_beyond_is_named():
    """60,000 is a number there, 70,000 is not: it is reported as beyond the range, never as inf, a maximum or zero."""
    ids = token_ids(2, 13)
    assert scan(access(planted(60_000.0, torch.float16)), ids).summary.spike == pytest.approx(60_000, rel=2e-3)
    with pytest.raises(
        NumericError, match=r"block 4.*beyond the range of float16: \d+ of .* exceed 65,504.*--dtype float32"
    ):
        access(planted(70_000.0, torch.float16))
    for dtype in (torch.bfloat16, torch.float32):
        assert scan(access(planted(70_000.0, dtype)), ids).summary.spike == pytest.approx(70_000, rel=5e-3)


def test_scores_that_overflow_are_named_and_are_no_sinks():
    """Queries and keys so large that q k exceeds float16: weights that are not numbers must not pass as "no sinks"."""
    from spikesink.access import observing, run
    from spikesink.measure.sinks import SinkMeasure
    from spikesink.observer import full_batch

    accessed = access(tiny("llama").to(torch.float16))
    with torch.no_grad():
        for name in ("q_proj", "k_proj"):
            getattr(accessed.model.model.layers[1].self_attn, name).weight.mul_(300)
    with pytest.raises(NumericError, match="attention of block 3"), observing(accessed, [SinkMeasure()]):
        run(accessed, full_batch(token_ids(2, 13)))


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_logits_that_are_not_numbers_are_no_perplexity(value):
    from spikesink.access import observing, run
    from spikesink.measure.perplexity import LossMeasure
    from spikesink.observer import full_batch

    accessed = access(tiny("llama"))
    said = {"nan": "values that are not numbers", "inf": "1 of .* values exceed"}[value]

    def spoil(module, inputs, output):
        output[0, 2, 5] = float(value)

    accessed.model.lm_head.register_forward_hook(spoil)
    with pytest.raises(NumericError, match=f"The logits: .*{said}"), observing(accessed, [LossMeasure()]):
        run(accessed, full_batch(token_ids(2, 13)))


def test_a_token_may_be_ruled_out():
    """Minus infinity for a token that is not the next one: its probability is zero, and the loss a number."""
    from spikesink.access import observing, run
    from spikesink.measure.perplexity import LossMeasure
    from spikesink.observer import full_batch

    accessed, ids = access(tiny("llama")), token_ids(2, 13)
    unused = min(set(range(97)) - set(ids.flatten().tolist()))

    def rule_out(module, inputs, output):
        output[:, :, unused] = -torch.inf

    with observing(accessed, [before := LossMeasure()]):
        run(accessed, full_batch(ids))
    accessed.model.lm_head.register_forward_hook(rule_out)
    with observing(accessed, [after := LossMeasure()]):
        run(accessed, full_batch(ids))
    assert all(0 < now < then for now, then in zip(after.loss_sums, before.loss_sums, strict=True))
