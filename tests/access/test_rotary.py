"""Pre-RoPE queries and keys against hooks on the projections (and QK norms) of each family."""

import pytest
import torch
from tiny import FAMILIES, tiny, token_ids

from spikesink.access import access, full_batch, observing, run
from spikesink.access.rotary import unrotating

D_HEAD = 6


class Collect:
    def __init__(self, rotary):
        self.rotary, self.query, self.key = rotary, {}, {}

    def on_attention(self, inputs):
        self.query[inputs.block], self.key[inputs.block] = (t.clone() for t in self.rotary.unrotated(inputs))


def projected(accessed, ids, names):
    """Outputs of the named modules (q, k) of each attention, as (batch, head, token, d_head)."""
    outputs, handles = {}, []
    for layer in accessed.layers:
        for name in names:

            def hook(_module, _args, output, key=(layer.attention.block, name)):
                outputs[key] = output.detach().clone()

            handles.append(getattr(layer.attention.inner, name).register_forward_hook(hook))
    with observing(accessed, []):
        run(accessed, full_batch(ids))
    for handle in handles:
        handle.remove()
    return outputs


def heads(flat):
    return flat.unflatten(-1, (-1, D_HEAD)).transpose(1, 2)


def expected(accessed, family, ids):
    if family == "gpt_neox":
        fused = projected(accessed, ids, ["query_key_value"])
        split = {block: t.unflatten(-1, (4, 3 * D_HEAD)).transpose(1, 2) for (block, _), t in fused.items()}
        return {b: (t[..., :D_HEAD], t[..., D_HEAD : 2 * D_HEAD]) for b, t in split.items()}
    if family == "phi3":
        fused = projected(accessed, ids, ["qkv_proj"])
        return {b: (heads(t[..., :24]), heads(t[..., 24:36])) for (b, _), t in fused.items()}
    if family == "gpt2":
        fused = projected(accessed, ids, ["c_attn"])
        return {b: (heads(t[..., :24]), heads(t[..., 24:48])) for (b, _), t in fused.items()}
    normed = family in ("qwen3", "gemma3_text", "olmo2")
    names = ("q_norm", "k_norm") if normed else ("q_proj", "k_proj")
    outputs = projected(accessed, ids, names)
    shaped = {key: t if normed and family != "olmo2" else heads(t) for key, t in outputs.items()}
    if family in ("qwen3",):
        shaped = {key: t.transpose(1, 2) for key, t in shaped.items()}
    return {
        b: (shaped[b, names[0]], shaped[b, names[1]]) for b, _ in dict.fromkeys(outputs) if (b, names[0]) in outputs
    }


ROPE = [f for f in FAMILIES if f not in ("opt",)]


@pytest.mark.parametrize("family", ROPE)
def test_unrotated_queries_and_keys_are_the_projections(family):
    accessed = access(tiny(family))
    ids = token_ids()
    with unrotating(accessed) as rotary:
        collect = Collect(rotary)
        with observing(accessed, [collect]):
            run(accessed, full_batch(ids))
    for block, (query, key) in expected(accessed, family, ids).items():
        assert collect.query[block].shape == query.shape, family
        assert torch.allclose(collect.query[block], query, rtol=1e-3, atol=1e-4)
        assert torch.allclose(collect.key[block], key, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("cohere", {}),
        ("glm", {"partial_rotary_factor": 0.5, "head_dim": 8}),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0}}),
    ],
)
def test_other_conventions(family, changes):
    accessed = access(tiny(family, **changes))
    d_head = changes.get("head_dim", D_HEAD)
    ids = token_ids()
    with unrotating(accessed) as rotary:
        collect = Collect(rotary)
        with observing(accessed, [collect]):
            run(accessed, full_batch(ids))
    outputs = projected(accessed, ids, ["q_proj", "k_proj"])
    for (block, name), output in outputs.items():
        ours = (collect.query if name == "q_proj" else collect.key)[block]
        assert torch.allclose(ours, output.unflatten(-1, (-1, d_head)).transpose(1, 2), rtol=1e-3, atol=1e-4)


def test_a_layer_without_rotation_is_left_alone():
    accessed = access(tiny("smollm3"))
    with unrotating(accessed) as rotary:
        names = {block: undo.__name__ for block, undo in rotary.undo.items()}
    assert names == {1: "_halves", 3: "_none", 5: "_halves"}
    hooks = sum(len(m._forward_pre_hooks) for m in accessed.model.modules())
    assert hooks == 0
