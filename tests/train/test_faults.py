"""What may happen to a run: killed at any moment, half-written checkpoints, a full disk, another recipe."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_recipe import CONTENT, losses, tiny_recipe

from spikesink.errors import InputError, OutputError
from spikesink.train import checkpoints
from spikesink.train.run import train

SOURCE = Path(__file__).parent.parent.parent / "src"
TIMEOUT = 1200


def quiet(stage, done, total):
    pass


def start(recipe_path, out, *arguments, **environment):
    command = [sys.executable, "-m", "spikesink", "train", str(recipe_path), "--out", str(out), *arguments]
    return subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted")
    train(tiny_recipe("training.steps=40", "monitor.every=4"), out / "run", progress=quiet)
    return losses(out / "run"), anatomy(out / "run")


def anatomy(out):
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["spikesink/spike"] for line in lines if "spikesink/spike" in line}


@pytest.fixture
def recipe_file(tmp_path):
    import yaml

    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**CONTENT, "monitor": {"every": 4}, "training": {"steps": 40, "batch_size": 4}}))
    return path


def test_killed_and_resumed_is_uninterrupted(uninterrupted, recipe_file, tmp_path):
    """SIGKILL at random steps, whatever is being done, until the run is through."""
    out = tmp_path / "run"
    chosen = random.Random()
    kill_at = sorted(chosen.sample(range(2, 39), 2))
    for target in kill_at:
        process = start(recipe_file, out, *(["--resume"] if out.exists() else []))
        deadline = time.monotonic() + TIMEOUT
        while process.poll() is None and time.monotonic() < deadline:
            if max(losses(out), default=0) >= target if (out / "log.jsonl").exists() else False:
                break
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=TIMEOUT)
        assert max(losses(out), default=0) >= min(target, 1), f"killed at {kill_at}"
    train(tiny_recipe("training.steps=40", "monitor.every=4"), out, resume=True, progress=quiet)
    assert losses(out) == uninterrupted[0], f"killed at {kill_at}"
    assert anatomy(out) == uninterrupted[1]


def test_half_written_checkpoints_are_passed_over(uninterrupted, tmp_path):
    """Cut a file of the newest, take the marker of the next: resume starts from the third."""
    recipe = tiny_recipe("training.steps=40", "monitor.every=4")
    out = tmp_path / "run"
    train(recipe, out, progress=quiet)
    root = out / "checkpoints"
    assert [checkpoints.step_of(folder) for folder in checkpoints.folders(root)][:3] == [40, 39, 36]
    weights = root / "checkpoint-40" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    (root / "checkpoint-39" / checkpoints.MARKER).unlink()
    (root / "checkpoint-36" / "optimizer.pt").unlink()
    assert checkpoints.newest_complete(root) == root / "checkpoint-33"
    record = train(recipe, out, resume=True, progress=quiet)
    assert record.provenance.settings["resumed_from"] == 33
    assert losses(out) == uninterrupted[0]
    assert checkpoints.newest_complete(root) == root / "checkpoint-40"


def test_a_checkpoint_that_changed_on_the_disk_is_passed_over(uninterrupted, tmp_path):
    """One bit of a weight, one of the optimiser's state: sizes and formats are as they were."""
    recipe = tiny_recipe("training.steps=40", "monitor.every=4")
    out = tmp_path / "run"
    train(recipe, out, progress=quiet)
    root = out / "checkpoints"
    for path in (root / "checkpoint-40" / "model.safetensors", root / "checkpoint-39" / "optimizer.pt"):
        content = bytearray(path.read_bytes())
        content[-200] ^= 1
        path.write_bytes(content)
    assert checkpoints.newest_complete(root) == root / "checkpoint-40"
    assert checkpoints.newest_undamaged(root) == root / "checkpoint-36"
    record = train(recipe, out, resume=True, progress=quiet)
    assert record.provenance.settings["resumed_from"] == 36
    assert losses(out) == uninterrupted[0]
    assert anatomy(out) == uninterrupted[1]
    assert checkpoints.newest_undamaged(root) == root / "checkpoint-40"


def test_a_full_disk_leaves_the_last_checkpoint_good(uninterrupted, tmp_path, monkeypatch):
    """The second checkpoint runs out of space in the middle of its optimiser state."""
    import torch

    recipe = tiny_recipe("training.steps=40", "monitor.every=4")
    out = tmp_path / "run"
    whole = torch.save

    def until_full(content, path, *rest, **options):
        if "checkpoint-6" in str(path) and "optimizer" in str(path):
            Path(path).write_bytes(b"PK half")
            raise OSError(28, "No space left on device")
        return whole(content, path, *rest, **options)

    monkeypatch.setattr(torch, "save", until_full)
    with pytest.raises(OutputError, match=r"No space left.*last good checkpoint is '.*checkpoint-3'.*--resume"):
        train(recipe, out, progress=quiet)
    monkeypatch.undo()
    assert [folder.name for folder in checkpoints.folders(out / "checkpoints")] == ["checkpoint-3"]
    train(recipe, out, resume=True, progress=quiet)
    assert losses(out) == uninterrupted[0]


def test_a_file_system_that_refuses_large_files(recipe_file, tmp_path):
    """A real write error: the process may write no file beyond a few kB. One message, exit 2, nothing half-written."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "import spikesink.train.run; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000));"
        f"sys.argv = ['spikesink', 'train', {str(recipe_file)!r}, '--out', {str(tmp_path / 'run')!r}];"
        "from spikesink.cli.main import run; run()"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert done.returncode == 2, done.stderr[-2000:]
    assert "could not be written" in done.stderr and "Traceback" not in done.stderr
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))


def test_another_recipe_is_refused_unless_asked(tmp_path):
    out = tmp_path / "run"
    train(tiny_recipe("training.steps=3"), out, progress=quiet)
    other = tiny_recipe("training.steps=6", "model.norm=dyt")
    with pytest.raises(InputError, match=r"model.norm: .*\n  training.steps: 3 -> 6\n.*--allow-changed-recipe"):
        train(other, out, resume=True, progress=quiet)
    record = train(tiny_recipe("training.steps=6"), out, resume=True, allow_changed=True, progress=quiet)
    assert max(losses(out)) == 6 and record.steps == 6


def test_another_text_is_refused_unless_asked(tmp_path):
    """The same path, so the same recipe; what it holds is another text."""
    out, text = tmp_path / "run", tmp_path / "text.txt"
    text.write_text("the cat sat on the mat and the dog sat on the cat\n" * 40)
    recipe = tiny_recipe("training.steps=3", f"data.source.text={text}")
    before = train(recipe, out, progress=quiet)
    train(recipe, out, resume=True, progress=quiet)
    text.write_text("a mat is no cat and a cat is no dog, said the dog\n" * 40)
    with pytest.raises(InputError, match=r"text has changed since .*--allow-changed-recipe") as refused:
        train(recipe, out, resume=True, progress=quiet)
    assert before.provenance.tokens["source_sha256"] in str(refused.value)
    record = train(recipe, out, resume=True, allow_changed=True, progress=quiet)
    assert record.provenance.tokens["source_sha256"] in str(refused.value)


def test_old_checkpoints_go_once_a_new_one_is_whole(tmp_path):
    train(tiny_recipe("running.keep=2"), tmp_path, progress=quiet)
    assert [folder.name for folder in checkpoints.folders(tmp_path / "checkpoints")] == [
        "checkpoint-12",
        "checkpoint-9",
    ]


def test_a_resumed_finished_run_changes_nothing(tmp_path):
    first = train(tiny_recipe(), tmp_path, progress=quiet)
    again = train(tiny_recipe(), tmp_path, resume=True, progress=quiet)
    assert again.held_out_loss_nats == first.held_out_loss_nats
    assert losses(tmp_path) and max(losses(tmp_path)) == 12
