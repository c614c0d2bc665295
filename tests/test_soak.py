"""Every kind of fault once, in a process of its own that forks commands freely. The long soak: make soak."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_a_short_soak(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "soak.py"), "--times", "1", "--inputs", "0"]
    # Each kind on the command that ends soonest; the others are for the long soak.
    command += ["--only", r"scan$|damaged \| train|cache damaged|shared by two"]
    command += ["--figures", str(tmp_path / "figures.json"), "--page", str(tmp_path / "none.md")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert {name.split(" | ")[0] for name in figures} >= {
        "SIGKILL",
        "cache damaged",
        "cache shared by two",
        "checkpoint damaged",
        "clock jumps",
        "disk full",
        "read-only output",
    }
    for name, counts in figures.items():
        assert counts["rounds"] == counts["survived"] > 0, name
    assert not list(tmp_path.glob("spikesink-soak-*")), "the soak cleans up"
