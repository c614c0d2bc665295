"""Peak memory of scans and plans, each in a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from tiny import VOCAB, tiny

SEVENTY_B = {
    "name": "seventy",
    "model": {
        "vocab_size": 128_256, "d_model": 8192, "n_layers": 80, "n_heads": 64, "n_kv_heads": 8, "d_head": 128,
        "max_positions": 8192, "ffn": {"kind": "swiglu", "d_ffn": 28_672},
    },
    "data": {"seq_len": 8192},
    "training": {
        "batch_size": 1024, "micro_batch": 1, "precision": "bf16", "fsdp": True, "activation_checkpointing": True,
    },
}  # fmt: skip
"""The sizes of Llama 3 70B."""


def embedded_shape(layers: int) -> dict[str, int]:
    """SmolLM2-135M's sizes with fewer layers and more positions."""
    return {
        "vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": layers,
        "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "max_position_embeddings": 32_768,
    }  # fmt: skip


def alone(measure: str, *arguments: Any) -> int:
    """The number that one of the functions below gives in a process of its own, started afresh: a forked one would
    begin with what its parent has freed and not given back."""
    command = [sys.executable, __file__, measure, json.dumps(arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout)


def peak_of_scan(shape: str | dict[str, int], sequences: int, tokens: int) -> int:
    """Bytes that a scan needs at its peak beyond the model and the ids."""
    from spikesink import scan
    from spikesink.access import access

    if isinstance(shape, str):
        model, vocabulary = tiny("llama", num_hidden_layers=2), VOCAB
    else:
        from transformers import AutoConfig, AutoModelForCausalLM

        torch.manual_seed(0)
        config = AutoConfig.for_model("llama", tie_word_embeddings=True, **shape)
        model, vocabulary = AutoModelForCausalLM.from_config(config).eval(), shape["vocab_size"]
    accessed = access(model)
    ids = torch.randint(0, vocabulary, (sequences, tokens), generator=torch.Generator().manual_seed(1))
    scan(accessed, ids[:1, :16])
    return peak(lambda: scan(accessed, ids).to_json())


def peak_of_plan(content: dict) -> int:
    """Bytes that planning a recipe needs at its peak."""
    from spikesink.train.recipe import Recipe
    from spikesink.train.sharding import plan

    recipe = Recipe.read(content)
    return peak(lambda: plan(recipe, 64))


def peak(work: Callable[[], object]) -> int:
    """Growth of the process's resident memory at its highest while `work` runs, in bytes."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = _status("VmRSS")
    work()
    return max(0, _status("VmHWM") - before)


def _status(field: str) -> int:
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(field))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    torch.set_num_threads(1)
    print({"peak_of_scan": peak_of_scan, "peak_of_plan": peak_of_plan}[sys.argv[1]](*json.loads(sys.argv[2])))
