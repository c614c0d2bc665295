"""Records with planted numbers, of any size, so that a page can be tested without a model.

What is written here is what tests look at; `completed` fills in the rest by the types of the records.
"""

import numpy as np
from completed import completed
from survey_rows import around

from spikesink.records import Anatomy, TrainingRun
from spikesink.records.interventions import Interventions
from spikesink.records.study import StudyRecord

HOSTILE = "</script><img src=x onerror=\"document.title='owned'\">'\"&<!--{{7*7}}"
"""What a vocabulary or a model's name may hold."""

MEASURES = ("amplifier", "trigger", "normalisation", "geometry", "heads", "properties")


def made(kind, arrays=None, **given):
    return kind.model_validate({**completed(kind, given), **({} if arrays is None else {"arrays": arrays})})


def provenance(name="made/model", **settings):
    return {
        "model": {"name": name, "dtype": "float32", "device": "cpu"},
        "tokens": {"source": "made up", "sequences": 4, "seq_len": 6, "bos_added": False},
        "settings": {"sinks": {"epsilon": 0.3}, **settings},
    }


def anatomy(
    *,
    layers=3,
    heads=2,
    d=8,
    seq=6,
    name="made/model",
    text="the",
    spikes=True,
    sinks=True,
    measures=MEASURES,
    vocabulary=50,
):
    """A spike of 500 in channel 5 that block 2 makes and the last block takes away; head 1 of a layer sinks on key 0,
    but that of layer 1 on key 1."""
    random = np.random.default_rng(0)
    attention, last = [2 * layer + 1 for layer in range(layers)], 2 * layers
    each_head = [(block, head) for block in attention for head in range(heads)]
    importance = random.uniform(0.01, 0.1, (layers, heads, seq)).astype(np.float32)
    importance[:, 1, 0] = 0.8
    if layers > 1:
        importance[1, 1] = [0.1, 0.7, *[0.01] * (seq - 2)]
    sections = _sections(attention, each_head, text, vocabulary)
    arrays = {
        "residual_blocks": np.arange(1, last + 1),
        "attention_blocks": np.array(attention),
        "key_importance": importance,
        "residual_channel_max": random.random((last, d), dtype=np.float32),
        "write_channel_max": random.random((last, d), dtype=np.float32),
        "sequence_loss_nats": random.random(4),
    }
    for measure in {"amplifier", "trigger", "geometry"} & set(measures):
        arrays |= _arrays(random, layers, heads, d, vocabulary)[measure]
    return made(
        Anatomy,
        arrays,
        summary=_summary(layers, heads, text, spikes, sinks),
        lifecycle={
            "blocks": [_cycle(block, last, spikes) for block in range(1, last + 1)],
            "step_rule": {"applies": spikes, "reason": None if spikes else "no spikes"},
        },
        spikes={
            "max_over_median_min": 20.0,
            "token_ratio_min": 11.0,
            "token_ratio": 300.0 if spikes else 7.25,
            "token_count": 3 if spikes else 0,
        },
        sinks={
            "metric": "sun2026",
            "epsilon": 0.3,
            "heads": [
                {"block": block, "head": head, "sink_rate": float(head == 1), "is_sink": sinks and head == 1,
                 "max_importance": float(importance[block // 2, head].max())}
                for block, head in each_head
            ],
        },
        provenance=provenance(name),
        **{measure: sections[measure] for measure in measures},
    )  # fmt: skip


def _summary(layers, heads, text, spikes, sinks):
    tokens = [
        {"sequence": 0, "position": 0, "text": text, "value": 500.0, "after": " cat sat"},
        {"sequence": 1, "position": 0, "text": "A", "value": 400.0, "after": " dog"},
        {"sequence": 1, "position": 3, "text": "\n", "value": 300.0, "before": text},
    ]
    return {
        "perplexity": 12.5,
        "sink_ratio": 0.5 if sinks else 0.0,
        "has_sinks": sinks,
        "sink_head_count": layers if sinks else 0,
        "head_count": layers * heads,
        "spike": 500.0,
        "spike_block": 2,
        "spike_channel": 5,
        "has_spikes": spikes,
        "spike_channels": [5] if spikes else [],
        "spike_tokens": tokens if spikes else [],
        "max_over_median": 1234.0 if spikes else 8.5,
        "step_up_blocks": [2] if spikes else [],
        "step_down_blocks": [2 * layers] if spikes else [],
    }


def _cycle(block, last, spikes):
    def peaks(value):
        return [{"channel": channel, "value": value / (rank + 1)} for rank, channel in enumerate((5, 3, 1))]

    return {
        "block": block,
        "kind": "attention" if block % 2 else "ffn",
        "resid_top3": peaks(500.0 if 2 <= block < last else 3.0),
        "out_top3": peaks(480.0 if block in (2, last) else 1.0),
        "share_of_plateau": {2: 1.0, last: -0.9}.get(block, 0.001) if spikes else None,
    }


def _arrays(random, layers, heads, d, vocabulary):
    """By measure."""
    norms = random.uniform(1, 2, (layers, d)).astype(np.float32)
    norms[0, 5] = 40.0
    kinds = np.repeat([0, 1, 2], [4, 3, 5]).astype(np.int8)
    points = random.normal(size=(layers, heads, len(kinds), 2)).astype(np.float32)
    planes = {
        "sink_head_points": points[0, 0], "sink_head_kinds": kinds, "other_head_points": points[0, 1],
        "other_head_kinds": kinds, "head_points": points, "head_kinds": kinds, "head_blocks": np.arange(layers) * 2 + 1,
        "head_explained": np.full((layers, heads), 0.75, dtype=np.float32),
    }  # fmt: skip
    return {
        "amplifier": {
            "amplifier.norms": norms,
            "amplifier.blocks": np.arange(layers) * 2 + 2,
            "amplifier.experts": np.full(layers, -2),
        },
        "trigger": {
            "trigger.first": random.uniform(400, 600, vocabulary).astype(np.float32),
            "trigger.later": random.uniform(1, 9, vocabulary).astype(np.float32),
        },
        "geometry": {f"geometry.{name}": values for name, values in planes.items()},
    }


def _sections(attention, each_head, text, vocabulary):
    """What tests look at in the sections of the record, by measure."""
    ffn = [block + 1 for block in attention]
    overlap = {"spikes": 3, "sinks": 5, "both": 2}
    return {
        "amplifier": {
            "spike_channel": 5,
            "outliers": [{"block": 2, "channel": 5}],
            "blocks": [
                {"block": block, "channels": [{"channel": 5, "eigenvalues": [9.0, -0.8]}]} for block in ffn
            ],
            "steps": [{"block": 2, "channel": 5}],
            "gates": [{"block": 2, "control": False}],
            "directions": [{"block": 2, "channels": [5, 3], "mean_cosine": 0.99}],
        },
        "trigger": {
            "probe": {
                "block": 2, "criterion": "sun2024", "median_embedding_norm": 3.1, "exceptions": [{"text": text}],
                "exception_count": 1, "counts": [{"criterion": "sun2024", "threshold": 100.0}], "items": vocabulary,
            },
            "first_token_map": {"step_block": 2, "channel": 5, "blocks": [{"block": 1}]},
            "self_sinking": [
                {"block": 1, "classes": [{"name": name} for name in ("first", "delimiter", "other")]}
            ],
        },
        "normalisation": {"spike_channels": [5], "blocks": [{"block": block} for block in range(1, ffn[-1] + 1)]},
        "geometry": {
            "keys": [{"block": block, "kv_head": 0} for block in attention],
            "gaps": [
                {"block": block, "head": head, "is_sink": head == 1, "gap": -0.5, "content": -0.3, "distance": -0.2}
                for block, head in each_head
            ],
            "planes": [
                {"name": name, "block": 1, "head": head} for name, head in (("sink_head", 1), ("other_head", 0))
            ],
        },
        "heads": {
            "uniform_distance": dict.fromkeys(attention, 2.5),
            "heads": [
                {"block": block, "head": head, "distance": 1.5, "loss_effect_nats": None} for block, head in each_head
            ],
            "correlations": [{"one": "sink_mass", "other": "distance"}],
            "loss_tokens": 0,
            "loss_reason": "made",
        },
        "properties": {
            "properties": [{"name": name, "holds": name != "v"} for name in ("i", "ii", "iii", "iv", "v")],
            "sink_tokens": {"heads_min": 3},
            "overlap": overlap,
            "overlap_later": {**overlap, "spikes": 1, "both": 0},
        },
    }  # fmt: skip


def _row(name, cost=0.0, perplexity=12.5, control_of=None):
    return {
        "name": name,
        "control_of": control_of,
        "target": "spikes",
        "perplexity": around(perplexity),
        "loss_difference_nats": around(cost, 0.01),
        "sink_ratio": around(0.5),
        "sink_ratio_kept": around(0.9),
        "plateau_kept": around(0.1),
        "spike_tokens": 1.0,
    }


def _damage(name, blocks=None, remedy=None):
    return {
        "name": name, "kind": "down_proj", "bits": 8, "granularity": "tensor", "scales": "dynamic", "remedy": remedy,
        "blocks": blocks, "perplexity": around(20.0), "loss_difference_nats": around(0.5),
    }  # fmt: skip


def interventions(*, name="made/model", text="the", parts=True):
    """Zeroing costs 11.3 nats, freezing nothing; down_proj breaks; one token must stay in the cache."""
    refused = {"applicable": False, "reason": "not asked for"}
    kept = [
        {"window": window, "keep": keep, "first": 0, "loss_difference_nats": around(0.01 if keep else 0.5)}
        for window in (16, 64)
        for keep in (0, 1, 4)
    ]
    return made(
        Interventions,
        interventions=[
            _row("baseline"),
            _row("zero_spikes", 11.3, 2.9e6),
            _row("zero_spikes/random_tokens", 0.02, control_of="zero_spikes"),
            _row("freeze_spikes", -0.0005),
            _row("mask_sinks", 1.25),
            {"name": "cut_amplifier", "applicable": False, "reason": "made so"},
        ],
        dissociation={
            "verdict": "sinks need spikes",
            "sentence": "Sinks go with the spikes, spikes stay without sinks.",
            **{
                name: {"question": question, "answer": word, "evidence": ["zero_spikes"], "reason": "because"}
                for name, question, word in (
                    ("sinks_need_spikes", "Do sinks need spikes?", "yes"),
                    ("spikes_need_sinks", "Do spikes need sinks?", "no"),
                    ("constant_suffices", "Does a constant do?", "yes"),
                )
            },
            "rules": {"in_words": ["A rule."]},
        },
        quantisation={
            "baseline": around(12.5),
            "sites": [_damage("a"), _damage("b")],
            "blocks": [_damage(f"block {block}", blocks=[block]) for block in (2, 4, 6)],
            "worst_kind": "down_proj",
            "worst_blocks": [2],
            "remedies": [_damage("c", remedy="spike tokens kept")],
            "spike_share": around(0.68),
            "weights_note": "The weights come from Q4_1.",
        }
        if parts
        else refused,
        kv_cache={"sequences": 6, "tokens": 512, "table": kept, "keep": 1, "tolerance_nats": 0.02}
        if parts
        else refused,
        recommendation={
            "text": "Keep block 2 in high precision.",
            "tokens": [{"position": 0, "spikes": 4, "of": 4}, {"token_id": 3, "text": text, "spikes": 1, "of": 3}],
            "channels": [5],
            "blocks": [2],
        },
        found={"has_spikes": True, "spike": 500.0, "channels": [5], "has_sinks": True, "sink_heads": [[1, 1], [3, 1]]},
        provenance=provenance(name, evaluated_sequences=24, draws=2, held_out_sequences=16),
    )


def training(name="made", end=1.5):
    curves = {
        "loss": np.linspace(5, end, 10),
        "spikesink/spike": np.geomspace(1, 300, 10),
        "spikesink/max_over_median": np.geomspace(5, 50, 10),
        "spikesink/sink_ratio": np.linspace(0, 0.5, 10),
        "spikesink/layer_0/sink_ratio": np.linspace(0, 0.5, 10),
        "spikesink/layer_1/sink_ratio": np.linspace(0, 0.2, 10),
    }
    return made(
        TrainingRun,
        curves | {f"{curve}.step": np.arange(0, 100, 10) for curve in curves},
        name=name,
        recipe={"monitor": {"every": 10, "sequences": 32}},
        parameters=999,
        steps=90,
        tokens=9000,
        held_out_loss_nats=end + 0.1,
        anatomy={"spike": 300.0},
        provenance=provenance(name),
    )


VARIANTS = {"baseline": (900.0, 0.4), "sandwich": (30.0, 0.35), "gate": (850.0, 0.02)}
"""Spike and sink ratio of each variant's first seed."""


def study(name="made", variants=None, parameters=None, seeds=3, claim="supported"):
    """Seeds differ by 10 %; the paper has the first two variants."""
    rows, cells = [], []
    for index, (variant, (spike, sinks)) in enumerate((variants or VARIANTS).items()):
        growing = [1 + 0.1 * seed for seed in range(seeds)]
        values = {
            "perplexity": [5.0 + seed for seed in range(seeds)],
            "sink_ratio": [sinks * factor for factor in growing],
            "spike": [spike * factor for factor in growing],
            "max_over_median": [spike / 2 * factor for factor in growing],
            "first_token_importance": [sinks / 2] * seeds,
        }
        rows.append(
            {
                "variant": variant,
                "changes": [] if index == 0 else ["model.norm: rms -> other"],
                "seeds": list(range(seeds)),
                "diverged": int(index == 1),
                "failed": 0,
                "parameters": (parameters or {}).get(variant, 1000),
                "measured": {
                    key: {
                        "mean": float(np.mean(of)),
                        "sd": float(np.std(of, ddof=1)) if seeds > 1 else None,
                        "n": seeds,
                    }
                    for key, of in values.items()
                    if seeds
                },
                "values": values,
                "paper": {"table": 5, "spike": 3818} if index < 2 else None,
            }
        )
        steps, rises = [0, 50, 100], [spike / 9, spike / 3, spike]
        for seed in range(seeds):
            by_name = {"spike": rises, "loss_nats": [5, 3, 2 + seed]}
            curves = {curve: {"step": steps, "value": values} for curve, values in by_name.items()}
            cells.append({"variant": variant, "seed": seed, "curves": curves})
    effect = {"metric": "spike", "ratio": 0.03, "low": 0.02, "high": 0.05, "change": "falls"}
    return made(
        StudyRecord,
        study=name,
        preset="nano",
        about="Does it come apart?",
        baseline="baseline",
        rows=rows,
        verdicts=[
            {"variant": row["variant"], "verdict": "spikes go, sinks stay", "effects": [effect]} for row in rows[1:]
        ],
        claims=[{"claim": 1, "text": "They come apart.", "verdict": claim, "evidence": "2 variants."}],
        rules={"fall_factor": 3.0},
        errors=["sandwich-3: diverged"],
        cells=cells,
        provenance=provenance(f"{name}-nano"),
    )
