"""Records with planted numbers, of any size, so that a page can be tested without a model."""

import numpy as np
from completed import completed

from spikesink.records import Anatomy, Section, TrainingRun
from spikesink.records.interventions import Interventions
from spikesink.records.study import StudyRecord

HOSTILE = "</script><img src=x onerror=\"document.title='owned'\">'\"&<!--{{7*7}}"
"""What a vocabulary or a model's name may hold."""

PROVENANCE_TOKENS = {"source": "made up", "sequences": 4, "seq_len": 6, "bos_added": False, "source_sha256": "ab"}
VERSIONS = {"spikesink": "0", "torch": "0", "transformers": "0", "python": "0"}
TIMING = {"created": "2026-11-24T00:00:00+00:00", "load_s": 1.0, "forward_s": 2.0, "total_s": 3.0}
MEASURES = ("amplifier", "trigger", "normalisation", "geometry", "heads", "properties")


def provenance(name="made/model", **settings):
    return {
        "model": {"name": name, "dtype": "float32", "device": "cpu"},
        "tokens": dict(PROVENANCE_TOKENS),
        "versions": VERSIONS,
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
    blocks = list(range(1, 2 * layers + 1))
    importance = random.uniform(0.01, 0.1, (layers, heads, seq)).astype(np.float32)
    importance[:, 1, 0] = 0.8
    if layers > 1:
        importance[1, 1] = [0.1, 0.7, *[0.01] * (seq - 2)]
    content = {
        "summary": _summary(layers, heads, text, spikes, sinks),
        "lifecycle": {
            "blocks": [_cycle(block, blocks[-1], spikes) for block in blocks],
            "step_rule": {
                "share_min": 0.1,
                "plateau": 500.0 if spikes else None,
                "tokens": 4,
                "applies": spikes,
                "reason": None if spikes else "no spikes",
            },
            "unrolled_sum_holds": True,
        },
        "spikes": {
            "max_over_median_min": 20.0,
            "token_ratio_min": 11.0,
            "token_ratio": 300.0 if spikes else 7.25,
            "share_of_spike_min": 0.1,
            "sun2024_absolute": 100.0,
            "sun2024_ratio": 1000.0,
            "verdict_block": 2,
            "massive_count": 9,
            "massive_blocks": [2, 3],
            "token_count": 3 if spikes else 0,
        },
        "sinks": {
            "metric": "sun2026",
            "epsilon": 0.3,
            "uniform_first_key": 0.408,
            "uniform_factor_min": 2.0,
            "sink_rate_min": 0.5,
            "first_key_importance": 0.5,
            "virtual_mass": None,
            "heads": [
                {
                    "block": 2 * layer + 1,
                    "head": head,
                    "first_key_importance": float(importance[layer, head, 0]),
                    "max_importance": float(importance[layer, head].max()),
                    "sink_rate": float(head == 1),
                    "is_sink": sinks and head == 1,
                }
                for layer in range(layers)
                for head in range(heads)
            ],
        },
        "provenance": provenance(name),
        "timing": TIMING,
        **{
            measure: completed(Section.known[measure], SECTIONS[measure](layers, heads, d, text, vocabulary))
            for measure in measures
        },
    }
    arrays = {
        "residual_blocks": np.array(blocks),
        "attention_blocks": np.arange(layers) * 2 + 1,
        "key_importance": importance,
        "residual_channel_max": random.random((2 * layers, d), dtype=np.float32),
        "write_channel_max": random.random((2 * layers, d), dtype=np.float32),
        "sequence_loss_nats": random.random(4),
    }
    if "amplifier" in measures:
        norms = random.uniform(1, 2, (layers, d)).astype(np.float32)
        norms[0, 5] = 40.0
        arrays |= {
            "amplifier.norms": norms,
            "amplifier.blocks": np.arange(layers) * 2 + 2,
            "amplifier.experts": np.full(layers, -2),
        }
    if "trigger" in measures:
        arrays |= {
            "trigger.first": random.uniform(400, 600, vocabulary).astype(np.float32),
            "trigger.later": random.uniform(1, 9, vocabulary).astype(np.float32),
        }
    if "geometry" in measures:
        arrays |= _planes(random, layers, heads)
    return Anatomy.model_validate({**content, "arrays": arrays})


def _summary(layers, heads, text, spikes, sinks):
    tokens = [
        {"sequence": 0, "position": 0, "token_id": 1, "text": text, "value": 500.0, "before": "", "after": " cat sat"},
        {"sequence": 1, "position": 0, "token_id": 2, "text": "A", "value": 400.0, "before": "", "after": " dog"},
        {"sequence": 1, "position": 3, "token_id": 3, "text": "\n", "value": 300.0, "before": text, "after": " end"},
    ]
    return {
        "perplexity": 12.5,
        "sink_ratio": 0.5 if sinks else 0.0,
        "sink_ratio_sun2026": 0.5,
        "sink_ratio_gu2025": 0.6,
        "sink1_gu2025": 0.4,
        "has_sinks": sinks,
        "sink_head_count": layers if sinks else 0,
        "head_count": layers * heads,
        "spike": 500.0,
        "spike_block": 2,
        "spike_channel": 5,
        "has_spikes": spikes,
        "spike_channels": [5] if spikes else [],
        "spike_tokens": tokens if spikes else [],
        "massive_count": 9,
        "max_over_median": 1234.0 if spikes else 8.5,
        "step_up_blocks": [2] if spikes else [],
        "step_down_blocks": [2 * layers] if spikes else [],
    }


def _cycle(block, last, spikes):
    high = 500.0 if 2 <= block < last else 3.0

    def peaks(value):
        return [
            {"channel": channel, "value": value / (rank + 1), "sign": 1, "sequence": 0, "position": 0}
            for rank, channel in enumerate((5, 3, 1))
        ]

    share = 1.0 if block == 2 else -0.9 if block == last else 0.001
    return {
        "block": block,
        "kind": "attention" if block % 2 else "ffn",
        "resid_top3": peaks(high),
        "out_top3": peaks(480.0 if block in (2, last) else 1.0),
        "resid_median": 0.4,
        "resid_max_over_median": high / 0.4,
        "share_of_plateau": share if spikes else None,
    }


def _planes(random, layers, heads):
    kinds = np.repeat([0, 1, 2], [4, 3, 5]).astype(np.int8)
    points = random.normal(size=(layers, heads, len(kinds), 2)).astype(np.float32)
    return {
        "geometry.sink_head_points": points[0, 0],
        "geometry.sink_head_kinds": kinds,
        "geometry.other_head_points": points[0, 1],
        "geometry.other_head_kinds": kinds,
        "geometry.head_points": points,
        "geometry.head_kinds": kinds,
        "geometry.head_blocks": np.arange(layers) * 2 + 1,
        "geometry.head_explained": np.full((layers, heads), 0.75, dtype=np.float32),
    }


def _prediction(ratio=0.97):
    return {"n": 4, "ratio": ratio, "r2": 0.9}


def _interval(value, n=4):
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": n}


def _amplifier(layers, heads, d, text, vocabulary):
    def channel(first):
        size, value = (40.0, 39.0) if first else (1.5, 0.9)
        return {"channel": 5, "frobenius": size, "rank": 0, "eigenvalues": [value, -0.8, 0.7, -0.6]}

    predictions = {"first": 0.97, "spike": 0.97, "other": 3.0}
    return {
        "spike_channel": 5,
        "followed_channels": [5, 3, 1],
        "outliers": [{"block": 2, "channel": 5, "expert": None, "frobenius": 40.0, "over_median": 26.0}],
        "outlier_over_median_min": 10.0,
        "outlier_count": 1,
        "outlier_blocks": [2],
        "blocks": [
            {"block": 2 * layer + 2, "experts": 1, "median_frobenius": 1.5, "channels": [channel(layer == 0)]}
            for layer in range(layers)
        ],
        "steps": [
            {
                "block": 2, "channel": 5, "eigenvalue": 39.0, "next_eigenvalue": -0.8, "share_of_spectrum": 0.95,
                "alignment_spike": 0.6, "alignment_other": 0.03,
                **{f"rank_one_{name}": _prediction(ratio) for name, ratio in predictions.items()},
                "quadratic_spike": _prediction(0.98), "quadratic_other": _prediction(2.0),
            }
        ],
        "gates": [{"block": 2, "control": False, "spike": {"cosine": 0.99}, "other": {"cosine": 0.99}}],
        "directions": [{"block": 2, "channels": [5, 3], "mean_cosine": 0.99, "control_cosine": 0.5}],
        "steps_reason": None,
    }  # fmt: skip


def _trigger(layers, heads, d, text, vocabulary):
    around = {f"{what}_{who}": value for what in ("before", "write", "after")
              for who, value in (("first", 0.3), ("later", 0.05))}  # fmt: skip
    values = {name: _interval(at) for name, at in (("self_attention", 0.3), ("norm_magnitude", 0.2))}
    kind = {"tokens": 9, "uniform": 0.1, "gamma_cosine": _interval(0.05), **values}
    spiking = vocabulary - 1
    return {
        "probe": {
            "block": 2, "items": vocabulary, "later_length": 16, "criterion": "sun2024", "ordinary_median": 1.7,
            "counts": [{"criterion": "sun2024", "threshold": 100.0, "first_count": spiking, "later_count": 0,
                        "first_ratio": spiking / vocabulary, "later_ratio": 0.0}],
            "first_median": 500.0, "later_median": 5.0, "exception_count": 1, "median_embedding_norm": 3.1,
            "exceptions": [{"token_id": 7, "text": text, "value": 85.0, "embedding_norm": 4.2}],
        },
        "first_token_map": {
            "step_block": 2, "channel": 5, "n_first": 8, "n_later": 8, "random_cosine": 0.03,
            "blocks": [{"block": 1, "map_gain": 1.4, "map_gain_random": 1.1, **around}],
        },
        "first_token_reason": None,
        "self_sinking": [{"block": 1, "classes": [{"name": name, **kind} for name in ("first", "delimiter", "other")]}],
        "self_sinking_reason": None,
    }  # fmt: skip


def _normalisation(layers, heads, d, text, vocabulary):
    def statistics(tokens, cosine):
        cosines = dict.fromkeys(("cosine_within", "cosine_across", "persistence"), cosine)
        energy = {"energy_share": cosine / 2, "participation_ratio": 3.0}
        return {"tokens": tokens, "prompts": 4, "bound": 0.9, **energy, **cosines}

    return {
        "norm": "rms norm",
        "spike_channels": [5],
        "blocks": [
            {"block": block, "spike": statistics(3, 0.99 if block > 1 else 0.3), "other": statistics(21, 0.2)}
            for block in range(1, 2 * layers + 1)
        ],
        "implicit": {"block": 2, "explained_spike": 0.999, "prompts_spike": 4, "prompts_other": 4},
    }


RULE = {"importance_min": 0.3, "heads_min": 3, "tokens": 5}


def _geometry(layers, heads, d, text, vocabulary):
    def gap(layer, head):
        gap, content, distance = (6.5, 6.0, 0.5) if head == 1 else (-0.5, -0.3, -0.2)
        return {"block": 2 * layer + 1, "head": head, "is_sink": head == 1, "gap": gap, "content": content,
                "distance": distance, "gap_std": 0.4, "positive_share": 0.9, "cosine_sink": 0.4,
                "cosine_other": 0.1}  # fmt: skip

    key = {
        "kv_head": 0, "n": 5, "rank_sink": 1.5, "rank_other": 4.0, "rank_spike": 1.1, "energy_rank_sink": 1,
        "energy_rank_other": 4, "energy_rank_spike": 1, "norm_sink": 2.0, "norm_other": 3.0, "separability": 0.99,
        "separability_control": 0.5,
    }  # fmt: skip
    return {
        "sink_tokens": RULE,
        "sequences": 4,
        "queries": 19,
        "keys": [{"block": 2 * layer + 1, **key} for layer in range(layers)],
        "gaps": [gap(layer, head) for layer in range(layers) for head in range(heads)],
        "gap_and_sink": _interval(0.66, layers * heads),
        "planes": [
            {"name": name, "block": 1, "head": head, "importance": 0.8, "explained": 0.75}
            for name, head in (("sink_head", 1), ("other_head", 0))
        ],
    }


def _heads(layers, heads, d, text, vocabulary):
    trace = {
        "distance": 1.5, "distance_by_mass": 1.7, "entropy_nats": 0.9, "value_norm_sink": 0.1, "value_norm_other": 1.0,
        "write_norm": 0.4, "write_norm_without": 0.35, "write_norm_renormalised": 1.6, "loss_effect_nats": None,
    }  # fmt: skip
    return {
        "sink_tokens": RULE,
        "queries": 19,
        "uniform_distance": {2 * layer + 1: 2.5 for layer in range(layers)},
        "heads": [
            {"block": 2 * layer + 1, "head": head, "sink_mass": 0.8 if head == 1 else 0.05, **trace}
            for layer in range(layers)
            for head in range(heads)
        ],
        "correlations": [
            {
                "one": "sink_mass",
                "other": "distance",
                "over_heads": _interval(0.4, 6),
                "within_layers": _interval(0.3, 6),
            }
        ],
        "loss_tokens": 0,
        "loss_control_nats": None,
        "loss_sink_nats": None,
        "writes_reason": None,
        "loss_reason": "made",
    }


def _properties(layers, heads, d, text, vocabulary):
    overlap = {"n": 12, "spikes": 3, "sinks": 5, "both": 2, "precision": 0.667, "recall": 0.4, "jaccard": 0.333,
               "chance_jaccard": 0.1, "chance_high": 0.3, "p_value": 0.04}  # fmt: skip
    return {
        "followed_channels": [5, 3, 1],
        "properties": [
            {"name": name, "description": f"property {name}", "threshold": 0.9, "holds": name != "v", "control": 0.1}
            for name in ("i", "ii", "iii", "iv", "v")
        ],
        "sink_tokens": RULE,
        "overlap": overlap,
        "overlap_later": {**overlap, "n": 10, "spikes": 1, "both": 0},
        "overlap_reason": None,
    }


SECTIONS = {
    "amplifier": _amplifier,
    "trigger": _trigger,
    "normalisation": _normalisation,
    "geometry": _geometry,
    "heads": _heads,
    "properties": _properties,
}


def _estimate(value, width=0.1):
    return {"value": value, "low": value - width, "high": value + width}


def _row(name, control_of=None, cost=0.0, perplexity=12.5, **more):
    return {
        "name": name,
        "control_of": control_of,
        "target": "spikes",
        "summary": f"What {name} does.",
        "perplexity": _estimate(perplexity),
        "loss_difference_nats": _estimate(cost, 0.01),
        "sink_ratio": _estimate(0.5),
        "sink_ratio_kept": _estimate(0.9),
        "plateau_kept": _estimate(0.1),
        "spike_tokens": 1.0,
        **more,
    }


def _damage(name, kind="down_proj", cost=0.5, blocks=None, remedy=None, granularity="tensor"):
    return {
        "name": name,
        "kind": kind,
        "bits": 8,
        "granularity": granularity,
        "scales": "dynamic",
        "remedy": remedy,
        "blocks": blocks,
        "perplexity": _estimate(20.0),
        "loss_difference_nats": _estimate(cost, 0.05),
    }


def _answer(question, word):
    return {"question": question, "answer": word, "evidence": ["zero_spikes"], "reason": "because"}


def interventions(*, name="made/model", text="the", parts=True):
    """Zeroing costs 11.3 nats, freezing nothing; down_proj breaks; one token must stay in the cache."""
    kept = [
        {
            "window": window,
            "keep": keep,
            "first": 0,
            "perplexity": _estimate(30.0 if keep == 0 else 13.0),
            "loss_difference_nats": _estimate(0.5 if keep == 0 else 0.01),
        }
        for window in (16, 64)
        for keep in (0, 1, 4)
    ]
    refused = {"applicable": False, "reason": "not asked for"}
    content = {
        "interventions": [
            _row("baseline"),
            _row("zero_spikes", cost=11.3, perplexity=2.9e6),
            _row("zero_spikes/random_tokens", "zero_spikes", cost=0.02),
            _row("freeze_spikes", cost=-0.0005),
            _row("mask_sinks", cost=1.25),
            {
                "name": "cut_amplifier",
                "control_of": None,
                "target": "spikes",
                "summary": "",
                "applicable": False,
                "reason": "made so",
            },
        ],
        "dissociation": {
            "verdict": "sinks need spikes",
            "sentence": "Sinks go with the spikes, spikes stay without sinks.",
            "sinks_need_spikes": _answer("Do sinks need spikes?", "yes"),
            "spikes_need_sinks": _answer("Do spikes need sinks?", "no"),
            "constant_suffices": _answer("Does a constant do?", "yes"),
            "rules": {"in_words": ["A rule."]},
        },
        "quantisation": {
            "baseline": _estimate(12.5),
            "sites": [_damage("a"), _damage("b", "ffn_in", 0.01)],
            "blocks": [_damage(f"block {block}", blocks=[block]) for block in (2, 4, 6)],
            "worst_kind": "down_proj",
            "worst_blocks": [2],
            "remedies": [_damage("c", cost=0.1, remedy="spike tokens kept")],
            "spike_share": _estimate(0.68),
            "weights_note": "The weights come from Q4_1.",
        }
        if parts
        else refused,
        "kv_cache": {"sequences": 6, "tokens": 512, "table": kept, "keep": 1, "tolerance_nats": 0.02}
        if parts
        else refused,
        "recommendation": {
            "text": "Keep block 2 in high precision.",
            "tokens": [{"position": 0, "spikes": 4, "of": 4}, {"token_id": 3, "text": text, "spikes": 1, "of": 3}],
            "channels": [5],
            "blocks": [2],
            "keep_sink_tokens": 1,
        },
        "found": {
            "has_spikes": True,
            "spike": 500.0,
            "channels": [5],
            "has_sinks": True,
            "sink_heads": [[1, 1], [3, 1]],
        },
        "provenance": provenance(name, evaluated_sequences=24, draws=2, held_out_sequences=16),
        "timing": TIMING,
    }
    return Interventions.model_validate(content)


def training(name="made", end=1.5, recipe=None):
    steps = np.arange(0, 100, 10)
    arrays = {}
    for curve, values in {
        "loss": np.linspace(5, end, 10),
        "spikesink/spike": np.geomspace(1, 300, 10),
        "spikesink/max_over_median": np.geomspace(5, 50, 10),
        "spikesink/sink_ratio": np.linspace(0, 0.5, 10),
        "spikesink/layer_0/sink_ratio": np.linspace(0, 0.5, 10),
        "spikesink/layer_1/sink_ratio": np.linspace(0, 0.2, 10),
    }.items():
        arrays |= {curve: values, f"{curve}.step": steps}
    return TrainingRun.model_validate(
        {
            "name": name,
            "recipe": recipe or {"monitor": {"every": 10, "sequences": 32}},
            "recipe_sha256": "0",
            "parameters": 999,
            "steps": 90,
            "tokens": 9000,
            "tokens_per_s": 100.0,
            "processes": 1,
            "loss_nats": end,
            "held_out_loss_nats": end + 0.1,
            "anatomy": {"spike": 300.0},
            "provenance": provenance(name),
            "timing": TIMING,
            "arrays": arrays,
        }
    )


VARIANTS = {"baseline": (900.0, 0.4), "sandwich": (30.0, 0.35), "gate": (850.0, 0.02)}
"""Spike and sink ratio of each variant's first seed."""


def study(name="made", variants=None, parameters=None, seeds=3, claim="supported"):
    """Seeds differ by 10 %; the paper has the first two variants."""
    chosen = variants or VARIANTS
    rows, cells = [], []
    for index, (variant, (spike, sinks)) in enumerate(chosen.items()):
        values = {
            "perplexity": [5.0 + seed for seed in range(seeds)],
            "sink_ratio": [sinks * (1 + 0.1 * seed) for seed in range(seeds)],
            "spike": [spike * (1 + 0.1 * seed) for seed in range(seeds)],
            "max_over_median": [spike / 2 * (1 + 0.1 * seed) for seed in range(seeds)],
            "first_token_importance": [sinks / 2] * seeds,
        }
        spreads = {
            key: {"mean": float(np.mean(of)), "sd": float(np.std(of, ddof=1)) if seeds > 1 else None, "n": seeds}
            for key, of in values.items()
            if seeds
        }
        rows.append(
            {
                "variant": variant,
                "summary": f"what {variant} is",
                "changes": [] if index == 0 else ["model.norm: rms -> other"],
                "seeds": list(range(seeds)),
                "diverged": int(index == 1),
                "failed": 0,
                "parameters": (parameters or {}).get(variant, 1000),
                "tokens": 90_000,
                "measured": spreads,
                "values": values,
                "paper": {"table": 5, "perplexity": 10.1, "sink_ratio": 0.46, "spike": 3818} if index < 2 else None,
            }
        )
        curve = {"step": [0, 50, 100], "value": [spike / 9, spike / 3, spike]}
        cells += [
            {
                "variant": variant,
                "seed": seed,
                "curves": {"spike": curve, "loss_nats": {**curve, "value": [5, 3, 2 + seed]}},
            }
            for seed in range(seeds)
        ]
    effect = {"metric": "spike", "ratio": 0.03, "low": 0.02, "high": 0.05, "separate": True, "change": "falls"}
    verdicts = [
        {"variant": row["variant"], "verdict": "spikes go, sinks stay", "sentence": "It does.", "effects": [effect]}
        for row in rows[1:]
    ]
    return StudyRecord.model_validate(
        {
            "study": name,
            "preset": "nano",
            "about": "Does it come apart?",
            "baseline": "baseline",
            "rows": rows,
            "verdicts": verdicts,
            "claims": [{"claim": 1, "text": "They come apart.", "verdict": claim, "evidence": "2 variants."}],
            "rules": {"fall_factor": 3.0},
            "errors": ["sandwich-3: diverged"],
            "cells": cells,
            "provenance": provenance(f"{name}-nano"),
            "timing": TIMING,
        }
    )
