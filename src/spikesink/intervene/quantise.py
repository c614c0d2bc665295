"""Simulated quantisation of activations and weights, with torch's fake-quantise primitives, as context managers.

Values are rounded to the grid of an integer type and stay floating point, so the arithmetic is that of an ideal
kernel. Scales are symmetric: the largest magnitude over the integer type's largest.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.fft import dct
from scipy.linalg import hadamard
from torch import Tensor, nn

from spikesink.access import AccessedModel, Batch, editing
from spikesink.access.linears import LinearSite, editing_inputs
from spikesink.errors import InputError

GRANULARITIES = ("tensor", "token", "channel")
BITS = range(2, 17)


def fake_quantise(values: Tensor, bits: int, granularity: str, largest: Tensor | None = None) -> Tensor:
    """Values (token, channel) rounded to `bits`-bit integers times a scale; the dtype stays.

    granularity: one scale per tensor, per token or per channel. largest: magnitudes that the scales are made of,
    (), (token,) or (channel,); default those of `values` (dynamic).
    """
    if granularity not in GRANULARITIES or bits not in BITS:
        raise InputError(f"Got {bits} bits per {granularity}; expected 2 to 16 bits per {', '.join(GRANULARITIES)}.")
    top = 2 ** (bits - 1) - 1
    exact = values.float()
    if largest is None:
        largest = _largest(exact, granularity)
    scale = (largest.float().to(exact.device) / top).clamp_min(torch.finfo(torch.float32).tiny)
    zero = torch.zeros_like(scale, dtype=torch.int32)
    if granularity == "tensor":
        rounded = torch.fake_quantize_per_tensor_affine(exact, scale, zero, -top - 1, top)
    else:
        axis = 0 if granularity == "token" else 1
        rounded = torch.fake_quantize_per_channel_affine(exact, scale, zero, axis, -top - 1, top)
    return rounded.to(values.dtype)


def _largest(values: Tensor, granularity: str) -> Tensor:
    magnitude = values.abs()
    if granularity == "tensor":
        return magnitude.max()
    return magnitude.amax(1 if granularity == "token" else 0)


@dataclass(frozen=True)
class Scheme:
    """How activations are quantised, and what is spared."""

    bits: int = 8
    granularity: str = "tensor"
    static: dict[str, Tensor] | None = None
    """By site name the largest magnitude of every channel, learned before; None = dynamic, from each forward pass."""
    spared_tokens: Tensor | None = None
    """(sequence, token) bool, of all sequences of the run: kept in high precision, and not in any scale."""
    spared_channels: dict[str, Tensor] = field(default_factory=dict)
    """By site name: channels that are kept in high precision."""

    def apply(self, name: str, values: Tensor, spared: Tensor | None) -> Tensor:
        """Quantise what enters one site, (..., channel); spared (...) bool marks tokens that are left alone."""
        flat = values.reshape(-1, values.shape[-1])
        rows = None if spared is None else ~spared.reshape(-1).to(flat.device)
        chosen = flat if rows is None else flat[rows]
        columns = torch.ones(flat.shape[1], dtype=torch.bool, device=flat.device)
        if name in self.spared_channels:
            columns[self.spared_channels[name].to(flat.device)] = False
        result = flat.clone()
        if chosen.numel() and bool(columns.any()):
            kept = chosen.clone()
            kept[:, columns] = fake_quantise(
                chosen[:, columns], self.bits, self.granularity, self._static(name, columns)
            )
            result = kept if rows is None else result.index_put((rows,), kept)
        return result.view_as(values)

    def _static(self, name: str, columns: Tensor) -> Tensor | None:
        if self.static is None or self.granularity == "token":
            return None
        largest = self.static[name].to(columns.device)[columns]
        return largest.max() if self.granularity == "tensor" else largest


class TokenMarks:
    """Which tokens of the running batch are marked, of marks (sequence, token) for all of the run."""

    def __init__(self, marked: Tensor | None) -> None:
        self.marked = marked
        self.rows: Tensor | None = None

    def edit_batch(self, batch: Batch) -> Batch:
        if self.marked is not None:
            self.rows = self.marked[batch.rows, : batch.ids.shape[1]]
        return batch


@contextmanager
def quantised_inputs(accessed: AccessedModel, sites: list[LinearSite], scheme: Scheme) -> Iterator[None]:
    """Quantise what enters these linear maps."""
    spares = TokenMarks(scheme.spared_tokens)
    alike = scheme.static is None and not scheme.spared_channels
    done: tuple[Tensor, Tensor] | None = None

    def apply(site: LinearSite, entering: Tensor) -> Tensor:
        nonlocal done
        # What several maps read (q, k and v) is rounded once, where all of them round alike.
        if done is None or done[0] is not entering or not alike:
            done = entering, scheme.apply(site.name, entering, spares.rows)
        return done[1]

    with ExitStack() as stack:
        stack.enter_context(editing(accessed, spares))
        stack.enter_context(editing_inputs(sites, apply))
        yield


class KvEdit:
    """An editor of post-RoPE keys and values of some blocks, None for all, as a cache would hold them.

    change: of a block's `key` or `value`, (sequence, token, channel), whose channels are those of all KV heads.
    """

    def __init__(self, change: Callable[[int, str, Tensor], Tensor], blocks: set[int] | None) -> None:
        self.change, self.blocks = change, blocks

    def edit_keys(self, block: int, key: Tensor) -> Tensor:
        return self._changed(block, "key", key)

    def edit_values(self, block: int, value: Tensor) -> Tensor:
        return self._changed(block, "value", value)

    def _changed(self, block: int, which: str, cached: Tensor) -> Tensor:
        if self.blocks is not None and block not in self.blocks:
            return cached
        flat = cached.transpose(1, 2).flatten(2)
        return self.change(block, which, flat).unflatten(2, (cached.shape[1], -1)).transpose(1, 2)


def kv_name(block: int, which: str) -> str:
    """Name of a block's keys or values among the sites."""
    return f"block {block} {which}"


@contextmanager
def quantised_kv(accessed: AccessedModel, scheme: Scheme, blocks: set[int] | None = None) -> Iterator[None]:
    """Quantise post-RoPE keys and values, as a cache would hold them; channels are those of all KV heads."""
    spares = TokenMarks(scheme.spared_tokens)
    edit = KvEdit(lambda block, which, flat: scheme.apply(kv_name(block, which), flat, spares.rows), blocks)
    with editing(accessed, spares), editing(accessed, edit):
        yield


def quantised_weights(sites: list[LinearSite], bits: int, granularity: str = "channel") -> AbstractContextManager[None]:
    """Quantise weights, one scale per tensor or per output channel; they come back bit for bit."""
    per = "tensor" if granularity == "tensor" else "token"
    return replaced_weights(sites, lambda rows: fake_quantise(rows, bits, per))


@contextmanager
def replaced_weights(sites: list[LinearSite], make: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Weights, shown as (output, input), become what `make` makes of them; they come back bit for bit."""
    with ExitStack() as stack:
        for site in sites:
            rows = site.weight.detach() if site.input_dim == 1 else site.weight.detach().T
            done = make(rows)
            stack.enter_context(_replaced(site.weight, done if site.input_dim == 1 else done.T))
        yield


@dataclass(frozen=True)
class Rotation:
    """x -> x Q on the last dimension, Q the Kronecker product of an orthogonal cosine transform and a Hadamard matrix.

    The Hadamard matrix is the largest that divides the width; the rest is 1 x 1 for a power of two. As in QuaRot, 2024.
    """

    cosine: Tensor
    hadamard: Tensor

    @classmethod
    def of(cls, width: int) -> "Rotation":
        """The rotation of vectors of this width."""
        power = width & -width
        return cls(
            cosine=torch.from_numpy(dct(np.eye(width // power), norm="ortho")).float(),
            hadamard=torch.from_numpy(hadamard(power) / np.sqrt(power)).float(),
        )

    def __call__(self, vectors: Tensor) -> Tensor:
        """Rotated vectors (..., width), in float32 at least."""
        dtype = torch.promote_types(vectors.dtype, torch.float32)
        cosine, spread = self.cosine.to(vectors.device, dtype), self.hadamard.to(vectors.device, dtype)
        parts = vectors.to(dtype).unflatten(-1, (len(cosine), len(spread)))
        return (cosine.T @ (parts @ spread)).flatten(-2)


@contextmanager
def rotated_inputs(accessed: AccessedModel, sites: list[LinearSite], scheme: Scheme | None) -> Iterator[None]:
    """Rotate what enters these linear maps, quantise it there, and rotate the weights to match; None = only rotate.

    Without quantisation the model computes what it did, up to rounding. The weights come back bit for bit.
    """
    spares = TokenMarks(scheme.spared_tokens if scheme else None)
    rotations = {site.name: Rotation.of(site.weight.shape[site.input_dim]) for site in sites}

    def turn(site: LinearSite, entering: Tensor) -> Tensor:
        rotated = rotations[site.name](entering).to(entering.dtype)
        return rotated if scheme is None else scheme.apply(site.name, rotated, spares.rows)

    with ExitStack() as stack:
        stack.enter_context(editing(accessed, spares))
        for site in sites:
            weight = site.weight.detach()
            turned = rotations[site.name](weight if site.input_dim == 1 else weight.T)
            stack.enter_context(_replaced(site.weight, turned if site.input_dim == 1 else turned.T))
        stack.enter_context(editing_inputs(sites, turn))
        yield


@contextmanager
def _replaced(parameter: nn.Parameter, values: Tensor) -> Iterator[None]:
    before = parameter.detach().clone()
    with torch.no_grad():
        parameter.copy_(values)
    try:
        yield
    finally:
        with torch.no_grad():
            parameter.copy_(before)
