"""What the processes of the distributed tests run: `torchrun train_worker.py FOLDER`, all in one launch."""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.distributed.checkpoint as dcp
from tiny_recipe import tiny_recipe
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from spikesink.errors import SpikesinkError
from spikesink.train import AnatomyMonitor, checkpoints
from spikesink.train.run import train
from spikesink.train.sharding import shard, unsharded
from spikesink.zoo import build

CHANGES = ("monitor.every=4", "monitor.sequences=4")
IDS = torch.randint(0, 12, (8, 9), generator=torch.Generator().manual_seed(2))


def optimised(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def step(model, optimiser, ids):
    loss = model(ids, labels=ids).loss
    loss.backward()
    optimiser.step()
    optimiser.zero_grad()
    return loss.detach()


def fresh():
    torch.manual_seed(0)
    return build(tiny_recipe("model.gate=conditional", "model.normaliser=learned_sink").model)


def ddp(folder):
    """A run of 12 steps from the start, and one that goes on from a single process's checkpoint at step 6."""
    train(tiny_recipe(*CHANGES), folder / "two")
    out = folder / "handed-over"
    assert checkpoints.newest_complete(out / "checkpoints").name == "checkpoint-6"
    torch.distributed.barrier()
    train(tiny_recipe(*CHANGES), out, resume=True)


def fsdp_by_trainer(folder, rank):
    """On a CPU accelerate falls back to DDP: the run must stop."""
    try:
        train(tiny_recipe("training.fsdp=true"), folder / "fsdp")
    except SpikesinkError as error:
        (folder / f"fsdp-{rank}.txt").write_text(f"{type(error).__name__}: {error}")


def states_of(model, optimiser):
    return dict(zip(("model", "optimiser"), get_state_dict(model, optimiser), strict=True))


def sharded(folder, rank, world):
    """Losses of a sharded model over 6 steps, half of them after a sharded save and load; its readings at first."""
    model = shard(fresh())
    readings = AnatomyMonitor(model, IDS, epsilon=0.45).read(0)
    optimiser = optimised(model)
    local = sum(parameter.to_local().numel() for parameter in model.parameters())
    share = local / sum(parameter.numel() for parameter in model.parameters())
    report = {"unsharded": unsharded(model), "share": share, "readings": readings, "losses": []}

    def train_on(steps):
        for _ in range(steps):
            loss = step(model, optimiser, IDS[rank::world])
            torch.distributed.all_reduce(loss)
            report["losses"].append(float(loss) / world)

    train_on(3)
    dcp.save(states_of(model, optimiser), checkpoint_id=folder / "dcp")
    torch.manual_seed(99)
    model = shard(build(model.config.decoder_spec))
    optimiser = optimised(model)
    states = states_of(model, optimiser)
    dcp.load(states, checkpoint_id=folder / "dcp")
    set_state_dict(model, optimiser, model_state_dict=states["model"], optim_state_dict=states["optimiser"])
    train_on(3)
    if rank == 0:
        (folder / "sharded.json").write_text(json.dumps(report))


def main(folder):
    ddp(folder)
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    fsdp_by_trainer(folder, rank)
    sharded(folder, rank, world)
    torch.distributed.barrier()
    # Tearing gloo down may abort a process whose partner left first; all results are on disk.
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
