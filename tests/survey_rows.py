"""Rows of a survey with planted figures."""

from spikesink.records import Provenance, Timing
from spikesink.records.survey import SurveyRecord, SurveyRow

NORMS = ("pre-norm", "sandwich", "output norm + QK norm", "post-norm", "parallel")


def around(value, width=0.1):
    return {"value": value, "low": value - width, "high": value + width}


def row(model="made/model", **given):
    content = {
        "model": model, "text": "default", "seq_len": 64, "status": "finished", "identity": "0", "family": "llama",
        "arrangement": "pre-norm", "parameters": 7_000_000, "blocks": 6, "d_model": 24, "vocab_size": 97,
        "sequences": 8, "perplexity": around(12.5), "spike": 500.0, "sequence_spike": around(450.0, 9.0),
        "max_over_median": 1234.0, "has_spikes": True, "spike_block": 2, "spike_channels": [5],
        "step_up_blocks": [2], "step_down_blocks": [6], "life_cycle": [1.0, 500.0, 490.0, 480.0, 470.0, 3.0],
        "sink_ratio": around(0.5, 0.05), "has_sinks": True, "sink_heads": 3, "heads": 6,
        "first_key_importance": 0.4, "sink_positions": [0],
    }  # fmt: skip
    return SurveyRow.model_validate({**content, **given})


def survey(rows, paper=()):
    return SurveyRecord(
        rows=list(rows),
        paper=list(paper),
        provenance=Provenance(model={"name": "survey"}, tokens={}, versions={}, settings={}),
        timing=Timing(created="2026-11-26T00:00:00+00:00", load_s=0, forward_s=0, total_s=1),
    )


def two_hundred():
    """200 cells of 20 families and 10 revisions each, as large as real ones."""
    return [_checkpoint(family, step) for family in range(20) for step in range(10)]


def _checkpoint(family, step):
    return row(
        f"maker/model-{family}", revision=f"step{1000 * (step + 1)}", step=1000 * (step + 1),
        family=f"family{family}", tokens_trained=2_000_000 * (step + 1), arrangement=NORMS[family % len(NORMS)],
        blocks=96, spike=10.0 * 2**step, max_over_median=8.0 * 2**step, has_spikes=step > 3, has_sinks=step > 1,
        perplexity=around(100.0 / (step + 1)), sink_ratio=around(step / 10, 0.02),
        step_up_blocks=[4] if step > 3 else [], step_down_blocks=[], spike_channels=list(range(step)),
        life_cycle=[1.0 + (block * (step + 1)) % 977 for block in range(96)],
        zero_cost_nats=around(4.2), int8_cost_nats=around(0.7),
    )  # fmt: skip
