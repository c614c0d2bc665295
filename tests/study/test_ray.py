"""A real Ray cluster of two workers on this machine, one of which is killed in the middle of its cell."""

import time

import pytest
from study_cases import GRID, InProcess, base

from spikesink.errors import InputError
from spikesink.study.executors import Ray
from spikesink.study.run import Study

DEADLINE_S = 300


def quiet(stage, done, total):
    pass


def test_a_lost_node_costs_no_cell(cluster, tmp_path):
    made, workers = cluster
    study = Study("grid", GRID, base("training.steps=200"), tmp_path / "ray", seeds=1)
    executor = Ray(made.address)
    killed = []

    def kill_one(stage, done, total):
        # Both workers train by now; what the killed one was at has no record.
        if done == 0 and not killed:
            deadline = time.monotonic() + DEADLINE_S
            while len(list((tmp_path / "work" / "grid-tiny").glob("*/log.jsonl"))) < 2:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            killed.append(workers[0])
            made.remove_node(workers[0], allow_graceful=False)

    record = study.run(executor, tmp_path / "work", _only_ray(kill_one))
    assert killed
    import ray

    # Ray says so only once a lost node has missed its heartbeats, which may be after the last cell.
    deadline = time.monotonic() + DEADLINE_S
    while sum(node["Alive"] for node in ray.nodes()) == 3:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert [node["Alive"] for node in ray.nodes()].count(True) == 2
    assert [(row.variant, row.seeds, row.failed) for row in record.rows] == [
        ("plain", [0], 0), ("wide", [0], 0), ("dyt", [0], 0),
    ]  # fmt: skip
    undisturbed = Study("grid", GRID, base("training.steps=200"), tmp_path / "local", seeds=1)
    assert undisturbed.run(InProcess(), tmp_path / "local-work", quiet).rows == record.rows


def _only_ray(progress):
    return lambda stage, done, total: progress(stage, done, total) if "Ray" in stage else None


def test_no_cluster_there():
    with pytest.raises(InputError, match="No Ray cluster"):
        Ray("127.0.0.1:1")
