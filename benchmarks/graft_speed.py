"""Tokens per second of CPU time: a graft's training against a bare loop over transformers' own Llama, step by step.

python benchmarks/graft_speed.py TEXT [STEPS]: the same batches of 4 x 64 tokens of the embedded model; CPU time
does not see what else the machine does. The first step of each is left out.
"""

import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import TrainerCallback

from spikesink.access import load
from spikesink.graft import GraftSettings, graft_recipes
from spikesink.train.streams import open_stream
from spikesink.train.trainer import RecipeTrainer
from spikesink.zoo import from_hf


class Clock(TrainerCallback):
    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *_: object, **__: object) -> None:
        self.times.append(time.process_time())


def main() -> None:
    torch.set_num_threads(1)
    text, steps = Path(sys.argv[1]), int([*sys.argv[2:], "6"][0])
    changes = ("gate=conditional", "training.batch_size=4", "running.eval_every=0", "running.threads=1")
    settings = GraftSettings(None, changes, text=text, steps=steps, seq_len=64)
    _, recipe, _ = graft_recipes(settings)
    stream = open_stream(recipe, lambda *_: None)
    bare = load().model.train()
    ours = from_hf(bare)
    optimiser = torch.optim.AdamW(bare.parameters(), lr=2e-4, weight_decay=0.01)
    times = [time.process_time()]
    for step in range(steps):
        ids = torch.stack([torch.from_numpy(stream.sample(4 * step + row)) for row in range(4)])
        bare(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(bare.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        times.append(time.process_time())
    del bare, optimiser
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = RecipeTrainer(recipe, ours, stream, Path(folder))
        trainer.args.save_strategy = "no"
        trainer.add_callback(clock)
        trainer.train()
    seconds = [(spent[-1] - spent[1]) / (len(spent) - 2) for spent in (times, [0.0, *clock.times])]
    print(f"bare loop {256 / seconds[0]:.1f} tokens/s, trainer {256 / seconds[1]:.1f}: {seconds[0] / seconds[1]:.3f} x")


if __name__ == "__main__":
    main()
