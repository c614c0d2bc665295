"""Freed memory goes back where the C library can give it, and the call is harmless everywhere else."""

import platform
import sys

import pytest
import torch

from spikesink.access import capture


def resident_mib() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's call")
def test_a_split_heap_is_given_back():
    """Large tensors freed between small ones that stay: most of their pages return."""
    large, small = [], []
    for _ in range(100):
        large.append(torch.ones(16_000))
        small.append(torch.ones(16))
    # The first free chunk at the heap's end would be trimmed anyway.
    small.append(torch.ones(16))
    before = resident_mib()
    large.clear()
    capture.release_freed()
    assert resident_mib() < before
    assert all(float(tensor.sum()) == 16 for tensor in small)


def test_elsewhere_nothing_happens(monkeypatch):
    capture._malloc_trim.cache_clear()
    monkeypatch.setattr(sys, "platform", "darwin")
    capture.release_freed()
    assert capture._malloc_trim() is None
    capture._malloc_trim.cache_clear()
