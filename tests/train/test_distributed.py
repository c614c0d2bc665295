"""Two gloo processes on the CPU: DDP, resuming across their number, FSDP2, the monitor merged over ranks."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_recipe import losses, tiny_recipe
from train_worker import CHANGES, IDS, fresh, optimised, step

from spikesink.train import AnatomyMonitor
from spikesink.train.run import train
from spikesink.train.sharding import plan

SOURCE = Path(__file__).parent.parent.parent / "src"
TIMEOUT = 1200


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What train_worker.py leaves, run once in two processes on a port that torchrun finds free; none of them stays."""
    folder = tmp_path_factory.mktemp("distributed")
    train(tiny_recipe(*CHANGES), folder / "one")
    # As if a single process had been stopped after step 6.
    shutil.copytree(folder / "one", folder / "handed-over")
    for later in (9, 12):
        shutil.rmtree(folder / "handed-over" / "checkpoints" / f"checkpoint-{later}")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(Path(__file__).parent / "train_worker.py"), str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=TIMEOUT)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output[-3000:]
    return folder


def readings(out):
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines if "spikesink/spike" in line}


@pytest.mark.parametrize("name", ["two", "handed-over"])
def test_ddp_gives_the_losses_of_one_process(folder, name):
    """Within 2e-5, since means are taken in another order; also when it goes on from one process's checkpoint."""
    assert losses(folder / name) == pytest.approx(losses(folder / "one"), abs=2e-5)
    for step_, expected in readings(folder / "one").items():
        assert readings(folder / name)[step_] == pytest.approx(expected, rel=1e-3)
    assert json.loads((folder / name / "training.json").read_text())["processes"] == 2


def test_one_process_goes_on_with_what_two_have_left(folder, tmp_path):
    shutil.copytree(folder / "two", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "checkpoint-12")
    record = train(tiny_recipe(*CHANGES), tmp_path / "run", resume=True)
    assert record.provenance.settings["resumed_from"] == 9
    assert losses(tmp_path / "run") == pytest.approx(losses(folder / "one"), abs=2e-5)


def test_fully_shard(folder):
    """Every parameter sharded, losses of one process, also after a sharded save and load; readings merged."""
    report = json.loads((folder / "sharded.json").read_text())
    assert report["unsharded"] == []
    assert 0.4 < report["share"] < 0.6
    model = fresh()
    assert report["readings"] == pytest.approx(AnatomyMonitor(model, IDS, epsilon=0.45).read(0), rel=1e-5)
    optimiser = optimised(model)
    expected = [float(step(model, optimiser, IDS)) for _ in range(6)]
    assert expected[5] < expected[0] - 0.05
    assert report["losses"] == pytest.approx(expected, abs=2e-5)


def test_fsdp_that_shards_nothing_is_refused(folder):
    for rank in (0, 1):
        message = (folder / f"fsdp-{rank}.txt").read_text()
        assert message.startswith("InputError: training.fsdp is true, but")
    assert not (folder / "fsdp" / "training.json").exists()


def test_the_plan_by_hand():
    """Parameters of the tiny model counted here; 16 bytes each, shared out."""
    recipe = tiny_recipe("training.batch_size=8", "training.precision=bf16")
    layer = 16 * 12 + 2 * 16 * 6 + 12 * 16 + 3 * 16 * 20 + 2 * 16
    root = 2 * 12 * 16 + 16
    need = plan(recipe, 4)
    assert need.states * 2**30 == pytest.approx(16 * (2 * layer + root) / 4)
    assert need.gathered * 2**30 == pytest.approx(2 * 2 * (2 * layer + root))
    tokens = 2 * 9
    inside = tokens * 2 * (4 * 16 + 2 * 6 * 4 + 2 * 6 + 3 * 20)
    assert need.activations * 2**30 == pytest.approx(tokens * 2 * 2 * 16 + 2 * inside + tokens * 12 * 10)
    assert plan(recipe, 8).states == pytest.approx(need.states / 2)
    assert not torch.distributed.is_initialized()
