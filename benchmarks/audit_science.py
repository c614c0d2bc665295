"""The main figures of the embedded model, derived again by plain code of this file, against a scan's.

Sinks, perplexity and spikes come from eager attention maps and plain hooks (tests/naive.py); norms and eigenvalues
from matrices U_k that are built whole; normalisation, head, key and ablation figures from loops over tokens, the
weights themselves and plain hooks. Nothing of `measure` or `access` is used but to load the model. Prints both numbers
and their relative difference; exit code 1 if one exceeds the limit.

Run: make audit-science (the embedded model, 24 x 64 committed token ids, two to three minutes on one core).
"""

import math
import sys
from pathlib import Path

import numpy as np
import torch
from naive import Naive, importance, naive, perplexity, sink_numbers
from torch import Tensor

from spikesink import Anatomy, load, scan
from spikesink.analyse.anatomy import trigger

IDS = Path(__file__).parent.parent / "tests" / "golden" / "smollm2_ids.npy"
LIMIT = 1e-4
"""Relative. Sums in another order, and float32 against float64, stay a hundred times below it."""
EPSILON = 0.3
Figures = dict[str, tuple[float | None, float]]
"""By name: the record's and ours."""


def summary_figures(record: Anatomy, reference: Naive, ids: Tensor) -> Figures:
    summary, sinks = record.summary, sink_numbers(reference.attention, EPSILON)
    largest = {block: float(hidden.abs().max()) for block, hidden in reference.residuals.items()}
    block = max(largest, key=lambda b: largest[b])
    hidden = reference.residuals[block]
    first = torch.stack([importance(attention)[:, :, 0].mean() for attention in reference.attention]).mean()
    return {
        "perplexity": (summary.perplexity, perplexity(reference.logits, ids)),
        "sink ratio, sun2026": (summary.sink_ratio_sun2026, sinks["sun2026"]),
        "sink ratio, gu2025": (summary.sink_ratio_gu2025, sinks["gu2025"]),
        "sink ratio, first key": (summary.sink1_gu2025, sinks["sink1_gu2025"]),
        "importance of the first key": (record.sinks.first_key_importance, float(first)),
        "spike": (summary.spike, largest[block]),
        "spike block": (summary.spike_block, block),
        "spike channel": (summary.spike_channel, int(hidden.abs().amax((0, 1)).argmax())),
        "massive elements": (summary.massive_count, massive_count(reference)),
    }


def massive_count(reference: Naive) -> int:
    count = 0
    for hidden in reference.residuals.values():
        for row in hidden.abs():
            count += int(((row > 100) & (row > 1000 * row.flatten().median())).sum())
    return count


def amplifier_figures(record: Anatomy, model) -> Figures:
    """||U_k||_F and the largest eigenvalues of S_k, from U_k = W_gate^T diag(W_down[k]) W_up with gamma folded in."""
    section, figures = record.amplifier, {}
    for block in (2, record.summary.spike_block, 58):
        layer = model.model.layers[block // 2 - 1]
        gamma = layer.post_attention_layernorm.weight.double()
        gate, up, down = (getattr(layer.mlp, f"{name}_proj").weight.double() for name in ("gate", "up", "down"))
        gate, up = gate * gamma, up * gamma
        of_block = next(entry for entry in section.blocks if entry.block == block)
        for entry in of_block.channels[:2]:
            quadratic = gate.T @ torch.diag(down[entry.channel]) @ up
            values = torch.linalg.eigvalsh((quadratic + quadratic.T) / 2)
            ordered = values[values.abs().argsort(descending=True)]
            place = f"block {block}, channel {entry.channel}"
            figures[f"||U||, {place}"] = (entry.frobenius, float(quadratic.square().sum().sqrt()))
            for index in range(2):
                figures[f"eigenvalue {index + 1}, {place}"] = (entry.eigenvalues[index], float(ordered[index]))
    return figures


def normalisation_figures(record: Anatomy, reference: Naive) -> Figures:
    """Of spike tokens at the spike block: h / rms(h), its energy in the spike channels, cosines between prompts."""
    section, block = record.normalisation, record.summary.spike_block
    hidden, epsilon = reference.residuals[block].double(), 1e-5
    vectors: dict[int, list[np.ndarray]] = {}
    for token in record.summary.spike_tokens:
        state = hidden[token.sequence, token.position]
        vectors.setdefault(token.sequence, []).append((state / (state.square().mean() + epsilon).sqrt()).numpy())
    every = [vector for prompt in vectors.values() for vector in prompt]
    energy = np.mean([(vector[section.spike_channels] ** 2).sum() / (vector**2).sum() for vector in every])
    participation = np.mean([(vector**2).sum() ** 2 / (vector**4).sum() for vector in every])
    cosines = [
        one @ other / math.sqrt((one @ one) * (other @ other))
        for first in vectors for second in vectors if first < second
        for one in vectors[first] for other in vectors[second]
    ]  # fmt: skip
    before: dict[int, list[np.ndarray]] = {}
    hidden = reference.residuals[section.implicit.before_block].double()
    for token in record.summary.spike_tokens:
        state = hidden[token.sequence, token.position]
        before.setdefault(token.sequence, []).append((state / (state.square().mean() + epsilon).sqrt()).numpy())
    without = {prompt: [vector.copy() for vector in own] for prompt, own in vectors.items()}
    for own in without.values():
        for vector in own:
            vector[section.spike_channels] = 0.0
    ours = next(entry for entry in section.blocks if entry.block == block).spike
    return {
        "energy in spike channels": (ours.energy_share, float(energy)),
        "participation ratio": (ours.participation_ratio, float(participation)),
        "cosine across prompts": (ours.cosine_across, float(np.mean(cosines))),
        "explained by other prompts": (section.implicit.explained_spike, explained(vectors)),
        "the same before the step-up": (section.implicit.explained_spike_before, explained(before)),
        "the same without spike channels": (section.implicit.explained_spike_without_channels, explained(without)),
    }


def explained(vectors: dict[int, list[np.ndarray]]) -> float:
    """Share of the energy of each prompt's vectors that the mean of all other prompts' explains."""
    total, left = 0.0, 0.0
    for prompt in vectors:
        mean = np.mean([vector for other in vectors if other != prompt for vector in vectors[other]], axis=0)
        for vector in vectors[prompt]:
            total += float(vector @ vector)
            left += float((vector - mean) @ (vector - mean))
    return 1 - left / total


def sink_mask(record: Anatomy, reference: Naive) -> Tensor:
    """Sink tokens by the record's rule: keys of the first half with enough importance in enough heads."""
    rule = record.heads.sink_tokens
    alphas = torch.cat([importance(attention) for attention in reference.attention], dim=1)
    mask = (alphas > rule.importance_min).sum(1) >= rule.heads_min
    mask[:, mask.shape[1] // 2 :] = False
    return mask


def head_figures(record: Anatomy, reference: Naive) -> Figures:
    """Sink mass, entropy and distance of a sink head and of another one, query by query."""
    mask, figures = sink_mask(record, reference), {}
    figures["sink tokens"] = (record.heads.sink_tokens.tokens, int(mask.sum()))
    ordered = sorted(record.heads.heads, key=lambda head: head.sink_mass)
    for head in (ordered[-10], ordered[len(ordered) // 2]):
        weights = reference.attention[(head.block - 1) // 2][:, head.head].double()
        masses, entropies, distances = [], [], []
        for sequence in range(len(weights)):
            for query in range(weights.shape[1]):
                others = [key for key in range(query + 1) if not mask[sequence, key]]
                if mask[sequence, query] or not others:
                    continue
                row = weights[sequence, query, : query + 1]
                mass = sum(float(row[key]) for key in range(query + 1) if mask[sequence, key])
                masses.append(mass)
                entropies.append(-sum(float(p) * math.log(float(p)) for p in row if p > 0))
                left = sum(float(row[key]) for key in others)
                if left > 1e-6:
                    distances.append(sum(float(row[key]) * (query - key) for key in others) / left)
        place = f"block {head.block}, head {head.head}"
        figures[f"sink mass, {place}"] = (head.sink_mass, float(np.mean(masses)))
        figures[f"entropy, {place}"] = (head.entropy_nats, float(np.mean(entropies)))
        figures[f"distance, {place}"] = (head.distance, float(np.mean(distances)))
    return figures


def normed_before(model, reference: Naive, ids: Tensor, block: int) -> Tensor:
    """What attention block `block` reads, (sequence, token, channel), in float64."""
    layer = model.model.layers[(block - 1) // 2]
    hidden = reference.residuals[block - 1] if block > 1 else model.model.embed_tokens(ids)
    hidden = hidden.double()
    normed = hidden / (hidden.square().mean(-1, keepdim=True) + model.config.rms_norm_eps).sqrt()
    return normed * layer.input_layernorm.weight.double()


def write_figures(record: Anatomy, reference: Naive, model, ids: Tensor) -> Figures:
    """Norm of a head's write with the sink's mass dealt to the others, and its correlation with that mass."""
    mask, figures = sink_mask(record, reference), {}
    width, groups = model.config.head_dim, model.config.num_attention_heads // model.config.num_key_value_heads
    ordered = sorted(record.heads.heads, key=lambda head: head.sink_mass)
    for head in (ordered[-1], ordered[-10], ordered[len(ordered) // 2]):
        attention = model.model.layers[(head.block - 1) // 2].self_attn
        shared = slice(head.head // groups * width, (head.head // groups + 1) * width)
        value = normed_before(model, reference, ids, head.block) @ attention.v_proj.weight.double()[shared].T
        output = attention.o_proj.weight.double()[:, head.head * width : (head.head + 1) * width]
        weights = reference.attention[(head.block - 1) // 2][:, head.head].double()
        rest = weights.masked_fill(mask[:, None], 0.0)
        left = rest.sum(-1)
        mass = (weights.sum(-1) - left).numpy()
        write = (weights @ value @ output.T).norm(dim=-1).numpy()
        renormalised = (rest @ value @ output.T).norm(dim=-1) / left
        others = (~mask).int().cumsum(1) > 0
        counted = (~mask & others).numpy()
        places, centred = counted.any(0), []
        for quantity in (mass, write):
            kept = np.where(counted, quantity, np.nan)[:, places]
            centred.append((kept - np.nanmean(kept, axis=0))[counted[:, places]])
        some = torch.from_numpy(counted) & (left > 1e-6)
        place = f"block {head.block}, head {head.head}"
        figures[f"write renormalised, {place}"] = (head.write_norm_renormalised, float(renormalised[some].mean()))
        # A mass that is 1 but for float32's last digits goes with nothing.
        if head.sink_mass < 0.99:
            figures[f"mass with write, {place}"] = (head.mass_with_write, float(np.corrcoef(*centred)[0, 1]))
    return figures


def key_figures(record: Anatomy, reference: Naive, model, ids: Tensor) -> Figures:
    """Energy of spike tokens' keys in one and in three columns of W_K. Eq. 26."""
    mask, figures = sink_mask(record, reference), {}
    spikes = [(t.sequence, t.position) for t in record.summary.spike_tokens if mask[t.sequence, t.position]]
    for part in (record.geometry.key_parts[0], record.geometry.key_parts[-1]):
        layer = model.model.layers[(part.block - 1) // 2]
        bare = normed_before(model, reference, ids, part.block) / layer.input_layernorm.weight.double()
        weight = layer.self_attn.k_proj.weight.double() * layer.input_layernorm.weight.double()
        states = torch.stack([bare[place] for place in spikes])
        keys = states @ weight.T
        energy = torch.stack([(states[:, c, None] * weight[:, c]).square().sum() for c in range(states.shape[1])])
        order = energy.argsort(descending=True).tolist()
        for count in (1, 3):
            chosen = order[:count]
            left = keys - states[:, chosen] @ weight[:, chosen].T
            share = 1 - float(left.square().sum() / keys.square().sum())
            figures[f"keys by {count} columns, block {part.block}"] = (part.explained[count - 1], share)
    return figures


def ablation_figures(record: Anatomy, model) -> Figures:
    """Share of items alone that spike when attention of these layers writes nothing."""
    section, figures = record.trigger.attention_ablation, {}
    items = np.random.default_rng(0).permutation(model.config.vocab_size)[: section.items]
    seen = {}
    layer = model.model.layers[section.block // 2 - 1]
    handle = layer.register_forward_hook(lambda _, __, output: seen.update(hidden=output))
    for row in (section.rows[0], section.rows[len(section.rows) // 2], section.rows[-1]):
        silenced = [
            model.model.layers[block // 2].self_attn.o_proj.register_forward_hook(lambda _, __, output: output * 0)
            for block in range(row.first_block, row.last_block + 1, 2)
        ]
        model.model(input_ids=torch.from_numpy(items)[:, None], use_cache=False)
        hidden = seen["hidden"][0] if isinstance(seen["hidden"], tuple) else seen["hidden"]
        share = float((hidden.abs().flatten(1).amax(1) > section.threshold).double().mean())
        name = f"spike without attention {row.first_block} to {row.last_block}"
        figures[name] = (row.spiking_share, share)
        for hook in silenced:
            hook.remove()
    handle.remove()
    return figures


def geometry_figures(record: Anatomy, reference: Naive, model, ids: Tensor) -> Figures:
    """Logit gap q.k_sink - q.k_other before the rotary embedding, from the projections' own weights."""
    mask, figures = sink_mask(record, reference), {}
    chosen = sorted(record.geometry.gaps, key=lambda gap: gap.gap)
    width, heads = model.config.head_dim, model.config.num_attention_heads
    groups = heads // model.config.num_key_value_heads
    for gap in (chosen[-1], chosen[len(chosen) // 2]):
        layer = model.model.layers[(gap.block - 1) // 2]
        normed = normed_before(model, reference, ids, gap.block)
        query = normed @ layer.self_attn.q_proj.weight.double()[gap.head * width : (gap.head + 1) * width].T
        place = gap.head // groups
        key = normed @ layer.self_attn.k_proj.weight.double()[place * width : (place + 1) * width].T
        gaps = []
        for sequence in range(len(ids)):
            scores = query[sequence] @ key[sequence].T / math.sqrt(width)
            for at in range(ids.shape[1]):
                sinks = [k for k in range(at + 1) if mask[sequence, k]]
                others = [k for k in range(at + 1) if not mask[sequence, k]]
                if not mask[sequence, at] and sinks and others:
                    gaps.append(float(scores[at, sinks].mean() - scores[at, others].mean()))
        figures[f"gap before RoPE, block {gap.block}, head {gap.head}"] = (gap.content, float(np.mean(gaps)))
    return figures


def main() -> int:
    accessed = load()
    ids = torch.from_numpy(np.load(IDS)).long()
    # The probe of all 49,152 items has its own check (benchmarks/vocabulary_probe.py).
    probe = trigger.probe_vocabulary
    trigger.probe_vocabulary = lambda model, block, progress: probe(model, block, np.arange(0, 49152, 96))
    record = scan(
        accessed, ids, epsilon=EPSILON, measures=("amplifier", "trigger", "normalisation", "geometry", "heads")
    )
    model = accessed.model
    reference = naive(model, "llama", ids)
    with torch.no_grad():
        figures = {
            **summary_figures(record, reference, ids),
            **amplifier_figures(record, model),
            **normalisation_figures(record, reference),
            **head_figures(record, reference),
            **geometry_figures(record, reference, model, ids),
            **write_figures(record, reference, model, ids),
            **key_figures(record, reference, model, ids),
            **ablation_figures(record, model),
        }
    worst = 0.0
    for name, (theirs, ours) in figures.items():
        difference = abs(float("inf") if theirs is None else theirs - ours) / max(abs(ours), 1e-12)
        worst = max(worst, difference)
        print(f"{name:46} {theirs:>14.6g} {ours:>14.6g} {difference:9.1e}{'' if difference <= LIMIT else '  DIFFERS'}")
    print(f"{len(figures)} figures, largest relative difference {worst:.1e} (limit {LIMIT:.0e})")
    return int(not worst <= LIMIT)


if __name__ == "__main__":
    sys.exit(main())
