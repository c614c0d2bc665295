"""`spikesink train` as it is typed: the plan, the recipe, errors, a run that scan reads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny_recipe import CONTENT
from typer.testing import CliRunner

from spikesink.cli.main import app
from spikesink.errors import InputError

SOURCE = Path(__file__).parent.parent.parent / "src"


def invoke(*arguments):
    return CliRunner().invoke(app, ["train", *arguments])


def test_the_plan_of_the_paper():
    result = invoke("paper", "--plan")
    assert result.exit_code == 0
    assert "6,738,415,616 parameters (6.74 B)" in result.stdout
    assert "50,000 steps of 2,097,152 tokens: 105 B tokens" in result.stdout
    rows = [line for line in result.stdout.splitlines() if line.count("│") > 3]
    # 16 bytes a parameter over 8, 64 and 256 GPUs.
    for row, gpus in zip(rows, (8, 64, 256), strict=True):
        cells = [cell.strip() for cell in row.strip("│ ").split("│")]
        assert cells[:2] == [str(gpus), f"{16 * 6738415616 / gpus / 2**30:.1f}"]


def test_the_recipe_is_shown_with_its_changes():
    result = invoke("nano", "--show", "--set", "model.norm=dyt", "--set", "training.steps=7")
    content = yaml.safe_load(result.stdout)
    assert content["model"]["norm"] == {"kind": "dyt", "alpha_init": 0.5}
    assert content["training"]["steps"] == 7


def test_errors_are_for_the_user():
    result = invoke("nano", "--set", "model.norm=dyy")
    assert isinstance(result.exception, InputError)
    assert str(result.exception).startswith("model.norm: unknown kind 'dyy'; did you mean 'dyt'?")


def test_a_run_that_scan_reads(tmp_path):
    """The commands as a user types them."""
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump({**CONTENT, "monitor": {"every": 6}}))
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}

    def typed(*arguments):
        command = [sys.executable, "-m", "spikesink", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200, check=False)

    out = tmp_path / "run"
    done = typed("train", str(recipe), "--out", str(out), "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads(done.stdout)
    assert record["kind"] == "training" and record["steps"] == 12
    scanned = typed("scan", str(out / "model"), "--tokens", str(out / "held_out.npy"), "--json")
    assert scanned.returncode == 0, scanned.stderr[-2000:]
    summary = json.loads(scanned.stdout)["summary"]
    assert summary["head_count"] == 4
    assert summary["perplexity"] == pytest.approx(2.718281828 ** record["held_out_loss_nats"], rel=1e-4)
    again = typed("train", str(recipe), "--out", str(out))
    assert again.returncode == 2
    assert again.stderr.strip().startswith("error: ") and "already holds a run" in again.stderr
