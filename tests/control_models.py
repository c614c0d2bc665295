"""Controls that must show neither spikes nor sinks: random initialisations, and a model trained on little text."""

from pydoc_data.topics import topics

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

SMALL = {
    "vocab_size": 256,
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def random_model(model_type: str, seed: int = 0, **options) -> PreTrainedModel:
    """Weights exactly as transformers initialises them before training."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, **options)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def text_bytes() -> torch.Tensor:
    """The English that every Python carries, a byte a token."""
    return torch.tensor(list("\n\n".join(topics[name] for name in sorted(topics)).encode()))


def byte_sequences(sequences: int, tokens: int, seed: int) -> torch.Tensor:
    text = text_bytes()
    starts = torch.randint(0, len(text) - tokens, (sequences,), generator=torch.Generator().manual_seed(seed))
    return torch.stack([text[start : start + tokens] for start in starts.tolist()])


def trained_model(steps: int = 200, seed: int = 0) -> tuple[PreTrainedModel, float]:
    """A small Llama trained on bytes for some steps, and its last loss in nats (a uniform guess has 5.5)."""
    model = random_model("llama", seed, **SMALL).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1)
    loss = torch.tensor(0.0)
    for step in range(steps):
        ids = byte_sequences(16, 64, seed=1000 * seed + step)
        loss = model(input_ids=ids, labels=ids).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    return model.eval(), float(loss.detach())
