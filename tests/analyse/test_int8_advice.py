"""What int8 is said to break: only what is damaged is named, in words and as modules; the KV cache too."""

import pytest
import torch
from tiny import spiking, tiny, token_ids

import spikesink
from spikesink.access import access
from spikesink.access.linears import find_linears, missing_linears
from spikesink.analyse.quantisation import is_notable
from spikesink.records.advice import advice, advised_prefix
from spikesink.records.deployment import (
    Budget,
    Damage,
    FormatDamage,
    Formats,
    KeptSinks,
    KvCache,
    MeasureSet,
    Quantisation,
    Remedies,
)
from spikesink.records.intervals import Estimate
from spikesink.report.export import _modules

NO_CACHE = KvCache(applicable=False)


def damage(kind, cost, granularity="tensor"):
    """It costs this many nats, give or take 0.01."""
    return Damage(
        name="", kind=kind, bits=8, granularity=granularity, scales="dynamic", remedy=None, blocks=None,
        perplexity=Estimate(value=9.0, low=8.0, high=10.0),
        loss_difference_nats=Estimate(value=cost, low=cost - 0.01, high=cost + 0.01),
    )  # fmt: skip


INPUTS = "Int8 with one scale per tensor breaks the input of down_proj: perplexity 5.0 to 9.0."
CACHE = (
    "The KV cache in int8 costs +0.250 [+0.240, +0.260] nats with one scale per tensor, +0.100 [+0.090, +0.110] nats "
    "with one scale per token."
)
NOT_INPUTS = "Int8 with one scale per tensor does no notable damage to what enters linear maps."


@pytest.mark.parametrize(
    ("inputs", "cache", "said"),
    [
        (0.3, 0.25, [INPUTS, CACHE]),
        (0.3, 0.015, [INPUTS]),
        (0.015, 0.25, [NOT_INPUTS, CACHE]),
        (0.015, 0.015, [NOT_INPUTS.replace("linear maps.", "linear maps, or to the KV cache.")]),
    ],
)
def test_what_is_said_of_inputs_and_of_the_cache(inputs, cache, said):
    sites = [damage("down_proj", inputs), damage("kv", cache), damage("kv", 0.1, "token")]
    base = Estimate(value=5.0, low=4.0, high=6.0)
    section = Quantisation(baseline=base, sites=sites, worst_kind="down_proj")
    assert [each for each in advice(True, section, NO_CACHE) if not each.startswith("Remedies")] == said


MISSING = ["ffn_in: there is none", "down_proj: there is none"]
UNKNOWN = "What rounding does to ffn_in and down_proj was not measured: there is none."


@pytest.mark.parametrize("inputs", [0.015, 0.3])
def test_where_experts_were_not_measured_no_sentence_speaks_of_every_map(inputs):
    sites = [damage("attention_in", inputs), damage("kv", 0.0)]
    base = Estimate(value=5.0, low=4.0, high=6.0)
    section = Quantisation(baseline=base, sites=sites, worst_kind="attention_in", skipped=MISSING)
    cost = damage("", -0.0004).model_dump(include={"perplexity", "loss_difference_nats"})
    facts = {"name": "fine", "element": "", "scales": "", "static": False, "spike_share": None, "lost": 0.0}
    rows = [FormatDamage(kind=kind, lost_without_spikes=None, **facts, **cost) for kind in ("inputs", "weights", "kv")]
    remedies = Remedies(rows=[damage("all", 1.0).model_copy(update={"scales": "static"})], missing=MISSING)
    said = advice(True, section, NO_CACHE, None, remedies, Formats(rows=rows, missing=MISSING))
    assert said.count(UNKNOWN) == 1
    whole = ["enters linear maps", "Weights cost", "Every linear map in"]
    assert not [sentence for sentence in said if any(words in sentence for words in whole)]
    assert any(
        "the linear maps that were measured costs at most 0.05 nats (upper end) in fine (+0.000)" in s for s in said
    )


def test_experts_of_some_layers_alone_are_counted():
    moe, dense = access(tiny("qwen2_moe")), access(tiny("llama"))
    reason = "the model has no such single linear map in 1 of 3 blocks"
    assert missing_linears(moe, find_linears(moe)) == [f"ffn_in: {reason}", f"down_proj: {reason}"]
    assert missing_linears(dense, find_linears(dense)) == []


def test_no_first_token_need_be_kept():
    cost = Estimate(value=0.0, low=0.0, high=0.0)
    row = KeptSinks(window=64, keep=0, first=0, perplexity=damage("kv", 0).perplexity, loss_difference_nats=cost)
    said = advice(True, Quantisation(applicable=False), KvCache(table=[row], keep=0))
    assert said == ["KV cache: no first token need be kept (window 64: perplexity 9.0 with none)."]


def test_costs_have_the_digits_that_tell_at_a_small_budget():
    cost = {"value": -0.00002, "low": -0.0004, "high": 0.000001}
    nothing = {"measures": [], "ignored": [], "blocks": [], "within": True}
    tried = MeasureSet(**nothing, loss_difference_nats=cost, perplexity=damage("kv", 0).perplexity)
    budget = Budget(nats=0.0001, deployed="int8", tried=[tried], chosen=tried)
    said = advice(True, Quantisation(applicable=False), NO_CACHE, budget)[0]
    assert "(int8; -0.00002 [-0.00040, +0.00000] without measures)" in said


@pytest.mark.parametrize(
    ("plain", "behind", "met_with", "advised"),
    [
        (2.0, 0.3, None, [7]),
        (0.015, 0.005, None, []),  # no damage to mend
        (2.0, 2.5, None, []),  # none mended
        (0.015, 0.005, ["prefix"], [7]),
        (0.015, 0.005, ["smoothing"], []),
    ],
)
def test_a_prefix_is_advised_where_it_mends_what_int8_breaks_or_meets_the_budget(plain, behind, met_with, advised):
    static = {"scales": "static", "kind": "all"}
    rows = [damage("all", plain).model_copy(update=static)]
    rows.append(damage("all", behind).model_copy(update=static | {"remedy": "prefix"}))
    budget = None
    if met_with:
        cost = rows[1].model_dump(include={"perplexity", "loss_difference_nats"})
        chosen = MeasureSet(measures=met_with, ignored=[], blocks=[], within=True, **cost)
        budget = Budget(nats=0.02, deployed="", tried=[chosen], chosen=chosen)
    section = Remedies(rows=rows, prefix_ids=[7])
    assert advised_prefix(section, budget) == advised
    said = advice(True, Quantisation(applicable=False), NO_CACHE, None, section)
    assert any("Prefix: token 7" in sentence for sentence in said) == (plain == 2.0 and behind < plain)


def outlying_keys(factor):
    """A Llama of which one rotated pair of every head is so much larger in keys and smaller in queries: the same
    function, whose keys int8 rounds away. And text that it writes, so that this costs it something."""
    model = tiny("llama")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(1.5)
        for layer in model.model.layers:
            attention = layer.self_attn
            for matrix, by in ((attention.k_proj, factor), (attention.q_proj, 1 / factor)):
                for channel in (0, 3):
                    matrix.weight[channel::6] *= by
        torch.manual_seed(0)
        ids = torch.randint(0, 97, (16, 1))
        for _ in range(39):
            ids = torch.cat([ids, torch.multinomial(model(ids).logits[:, -1].softmax(-1), 1)], 1)
    return model, ids


def test_where_only_the_cache_breaks_no_linear_map_is_kept():
    model, ids = outlying_keys(1000.0)
    record = spikesink.dissociate(access(model), ids, which="none,quantisation", held_out=4)
    costs = {row.kind: row.loss_difference_nats for row in record.quantisation.sites[:5]}
    assert costs["kv"].low > 0.05
    assert all(costs[kind].low <= 0.01 for kind in costs if kind != "kv")
    # A block does a good share of the little that there is.
    alone = [row.loss_difference_nats for row in record.quantisation.blocks]
    assert any(is_notable(cost, costs["down_proj"].value) for cost in alone)
    advised = record.recommendation
    assert (advised.blocks, advised.modules, _modules(record)) == ([], [], [])
    assert "no notable damage to what enters linear maps. The KV cache in int8 costs +0." in advised.text
    assert "worst blocks kept" not in [row.remedy for row in record.quantisation.remedies]


def test_of_damage_that_is_not_told_from_zero_spikes_have_no_share():
    model = spiking()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.div_(2)
    ids = token_ids(12, 24).clamp(min=5)
    ids[:, 0] = 2
    section = spikesink.dissociate(access(model), ids, which="none,quantisation", held_out=4).quantisation
    worst = next(row for row in section.sites if row.kind == section.worst_kind)
    assert worst.loss_difference_nats.low <= 0
    assert "spike tokens kept" in [row.remedy for row in section.remedies]
    assert section.spike_share is None
