"""A survey on a real Ray cluster of two workers on this machine, one of which is killed while it measures."""

import sys
import time

import numpy as np
from tiny import tiny, token_ids

from spikesink.study.executors import Ray
from spikesink.survey.cell import SURVEYED
from spikesink.survey.grid import Spec
from spikesink.survey.run import Survey

DEADLINE_S = 300


def test_a_lost_worker_costs_no_model(cluster, tmp_path):
    made, workers = cluster
    for seed, name in enumerate(("llama", "gpt2", "qwen3")):
        tiny(name, seed=seed).save_pretrained(tmp_path / name)
    np.save(tmp_path / "ids.npy", token_ids(400, 64).numpy())
    spec = Spec.parse(
        {"models": [str(tmp_path / name) for name in ("llama", "gpt2", "qwen3")], "texts": str(tmp_path / "ids.npy"),
         "sequences": 400, "dtype": ["float32", "bfloat16", "float64"]}
    )  # fmt: skip
    survey = Survey(spec, tmp_path / "out")
    killed = []

    def kill_one(stage, done, total):
        # Both are at a model by now: its folder is locked, and no row of it is whole.
        if "Ray" in stage and done == 0 and not killed:
            deadline = time.monotonic() + DEADLINE_S
            while len(list((tmp_path / "out" / "runs").glob("*/.lock"))) < 2:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            killed.append(workers[0])
            made.remove_node(workers[0], allow_graceful=False)

    record = survey.run(Ray(made.address, kind=SURVEYED), kill_one)
    assert killed and survey.room.machines == 2 and 0 < survey.room.memory < sys.maxsize, "of the workers, not the head"
    assert [(row.status, row.computed_in) for row in record.rows] == [
        ("finished", "float32"), ("finished", "bfloat16"), ("finished", "float64")
    ] * 3  # fmt: skip
