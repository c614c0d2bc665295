"""Memory does not grow with sequences, nor like T x T with length, and a 70 B model is planned without memory.

Short versions of benchmarks/scale.py.
"""

from pathlib import Path

import pytest
from scaling import SEVENTY_B, alone, embedded_shape

from spikesink.train.recipe import Recipe
from spikesink.train.sharding import count_parameters, meta_model, plan

MIB = 2**20
pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc")


def test_more_sequences_cost_only_their_own_numbers():
    """A few numbers for each sequence, nothing else: a kilobyte of memory a sequence would show as 6 MiB.

    Both long enough for the allocator to have its share: between 64 and 2,000 sequences it takes some MiB.
    """
    few, many = (alone("peak_of_scan", "tiny", n, 16) for n in (2_000, 8_000))
    assert many - few < 4 * MIB, (few / MIB, many / MIB)


def test_length_costs_rows_and_no_map():
    """At T = 8192 one map of one layer of four heads has 1 GiB."""
    shape = {
        "vocab_size": 97, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 6, "max_position_embeddings": 8192,
    }  # fmt: skip
    assert alone("peak_of_scan", shape, 1, 8192) < 256 * MIB


def test_logits_are_never_held_whole():
    """A scan makes them in pieces; beside those it needs rows and channels."""
    shape = embedded_shape(1)
    logits = 4 * 1024 * shape["vocab_size"]
    assert 0.1 * logits < alone("peak_of_scan", shape, 1, 1024) < 0.7 * logits


def test_seventy_billion_parameters_are_planned():
    recipe = Recipe.read(SEVENTY_B)
    total, layer = count_parameters(recipe)
    # Llama 3 70B, counted by hand: two embeddings, 80 layers of four attention and three FFN matrices, norms.
    attention = 2 * 8192 * 8192 + 2 * 8192 * 1024
    assert layer == attention + 3 * 8192 * 28_672 + 2 * 8192
    assert total == 2 * 128_256 * 8192 + 80 * layer + 8192 == 70_553_706_496
    assert plan(recipe, 64).states == pytest.approx(16 * total / 64 / 2**30, rel=1e-12)
    assert alone("peak_of_plan", SEVENTY_B) < 64 * MIB


def test_counting_one_layer_counts_all():
    recipe = Recipe.read(
        {**SEVENTY_B, "model": {**SEVENTY_B["model"], "n_layers": 3, "virtual_keys": "key_value_bias"}}
    )
    total, _ = count_parameters(recipe)
    assert total == sum(parameter.numel() for parameter in meta_model(recipe).parameters())
