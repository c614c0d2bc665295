"""Spikes and sinks next to the loss of a training that is not spikesink's own.

Two ways, each on a small Llama and text that every Python carries: `AnatomyCallback` in a Hugging Face Trainer, and
`AnatomyMonitor` in a plain loop.

Run: python examples/train_with_monitor.py [--steps 60] [--out runs/monitored]
"""

import argparse
import pydoc_data.topics
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from spikesink.train import AnatomyCallback, AnatomyMonitor

SEQ_LEN = 64
PROBES = 8


def byte_sequences() -> Tensor:
    """The Python reference as bytes, in rows (sequence, token)."""
    text = "\n".join(pydoc_data.topics.topics.values()).encode()
    rows = len(text) // SEQ_LEN
    return torch.tensor(list(text[: rows * SEQ_LEN])).view(rows, SEQ_LEN)


def small_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256,
            hidden_size=64,
            intermediate_size=160,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=SEQ_LEN,
        )
    )


def with_the_trainer(ids: Tensor, steps: int, every: int, out: Path) -> list[dict]:
    """A Trainer as it is, plus one line. Its trackers get the readings; so does a JSONL."""
    trainer = Trainer(
        model=small_llama(),
        args=TrainingArguments(
            output_dir=str(out / "trainer"),
            max_steps=steps,
            per_device_train_batch_size=16,
            learning_rate=3e-3,
            logging_steps=every,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=[{"input_ids": row, "labels": row} for row in ids[PROBES:]],
    )
    AnatomyCallback(ids[:PROBES], every=every, path=out / "trainer.jsonl").attach(trainer)
    trainer.train()
    return trainer.state.log_history


def with_a_loop(ids: Tensor, steps: int, every: int, out: Path) -> list[dict]:
    """A loop of one's own; the monitor returns the readings at every `every`-th step and None at the others."""
    model = small_llama().train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    monitor = AnatomyMonitor(model, ids[:PROBES], every=every, path=out / "loop.jsonl")
    draw = torch.Generator().manual_seed(0)
    log = []
    for step in range(1, steps + 1):
        batch = ids[PROBES + torch.randint(len(ids) - PROBES, (16,), generator=draw)]
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        readings = monitor(step)
        if readings is not None:
            log.append({"step": step, "loss": loss.item(), **readings})
    return log


def show(title: str, log: list[dict]) -> None:
    print(title)
    for entry in log:
        if "spikesink/spike" in entry:
            print(
                f"  step {entry['step']:>4}: spike {entry['spikesink/spike']:7.2f}, "
                f"max / median {entry['spikesink/max_over_median']:6.1f}, "
                f"sink ratio {entry['spikesink/sink_ratio']:.1%}"
            )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--steps", type=int, default=60)
    options.add_argument("--every", type=int, default=20)
    options.add_argument("--out", type=Path, default=Path("runs/monitored"))
    chosen = options.parse_args()
    ids = byte_sequences()
    show("Trainer", with_the_trainer(ids, chosen.steps, chosen.every, chosen.out))
    show("Loop", with_a_loop(ids, chosen.steps, chosen.every, chosen.out))


if __name__ == "__main__":
    main()
