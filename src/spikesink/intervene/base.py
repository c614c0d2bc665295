"""What every intervention is: a name, what it takes away, its controls, and a context manager that undoes itself.

An intervention is a function in its own file, decorated with `intervention`, and one line in `__init__.py`.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from spikesink.access import AccessedModel, access
from spikesink.errors import DoesNotApplyError, InputError, did_you_mean


@dataclass(frozen=True)
class Found:
    """What was found in a model before anything is changed: where its spikes and sinks are, and the constants.

    Blocks are 1-based, heads, channels and positions 0-based. States are of shape (channel,), float32.
    """

    has_spikes: bool
    spike: float
    """Largest magnitude after any block."""
    edit_block: int
    """The block after which spikes are complete: the last step-up block, or the spike block where no rule names one."""
    step_up_block: int | None
    step_down_block: int | None
    """The first step-down block; None where no block takes the spikes away."""
    channels: tuple[int, ...]
    """Spike channels, the largest first."""
    magnitude_min: float
    """Magnitude after `edit_block` from which an element is part of a spike."""
    has_sinks: bool = False
    sink_positions: tuple[int, ...] = (0,)
    sink_heads: tuple[tuple[int, int], ...] = ()
    """(block, head) of every sink head."""
    spike_states: dict[int, Tensor] = field(default_factory=dict)
    """By block from `edit_block` on: mean residual of the spike tokens."""
    ordinary_states: dict[int, Tensor] = field(default_factory=dict)
    """The same of all other tokens."""
    ordinary_max: float = 0.0
    """Largest magnitude of any element of the other tokens after `edit_block`."""
    amplifier: tuple[tuple[int, int], ...] = ()
    """(channel, neuron) entries of the step-up FFN's W_down that write the spike, the largest contribution first."""
    direction: Tensor | None = None
    """s* of the largest spike channel, a unit vector (channel,), where the step-up block is a gated FFN."""
    direction_missing: str | None = None
    """Why there is no s*."""
    sequences: int = 0
    """Held-out sequences that all this was learned on."""
    spike_tokens: int = 0
    """Spike tokens among them."""

    @property
    def plateau(self) -> tuple[int, int] | None:
        """First and last block between step-up and step-down; None without spikes."""
        if not self.has_spikes:
            return None
        last = self.step_down_block - 1 if self.step_down_block else max([self.edit_block, *self.spike_states])
        return self.edit_block, last

    def is_spike(self, hidden: Tensor) -> Tensor:
        """Which tokens of the residual (batch, token, channel) after `edit_block` hold a spike, (batch, token) bool."""
        channels = torch.tensor(self.channels, device=hidden.device)
        return (hidden[..., channels].abs() >= self.magnitude_min).any(-1)


Context = AbstractContextManager[Any]
Build = Callable[..., Context]


@dataclass(frozen=True)
class Intervention:
    """A named change of a model. Calling it gives a context manager: `with zero_spikes(model, found): ...`.

    `model` is an accessed model or a Hugging Face causal LM; options are those of the function it was made from, and
    `control=NAME, seed=N` makes the change of the same size elsewhere. Raises DoesNotApplyError with the reason.
    """

    name: str
    target: str
    """What it takes away or changes: `spikes` or `sinks`."""
    summary: str
    controls: tuple[str, ...]
    build: Build

    def __call__(
        self, model: AccessedModel | PreTrainedModel, found: Found, *, control: str | None = None, **options: Any
    ) -> Context:
        if control is not None and control not in self.controls:
            raise InputError(f"Unknown control '{control}' of {self.name}{did_you_mean(control, self.controls)}")
        accessed = model if isinstance(model, AccessedModel) else access(model)
        if self.target == "spikes" and not found.has_spikes:
            raise DoesNotApplyError("the model has no spikes")
        if self.target == "sinks" and not found.has_sinks:
            raise DoesNotApplyError("the model has no sinks")
        return self.build(accessed, found, control=control, **options)


def intervention(target: str, controls: tuple[str, ...]) -> Callable[[Build], Intervention]:
    """Make an intervention of a function (accessed, found, *, control, seed, ...) -> context manager.

    Its name is the function's and its summary the first line of the docstring.
    """

    def made(build: Any) -> Intervention:
        return Intervention(build.__name__, target, build.__doc__.strip().splitlines()[0], controls, build)

    return made


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_tokens(excluded: Tensor, generator: torch.Generator, among: Tensor | None = None) -> Tensor:
    """As many tokens in each row as `excluded` has, drawn from the others; (batch, token) bool.

    `among` (batch or 1, token) narrows the choice; a row with too few others gives all of them.
    """
    allowed = ~excluded if among is None else ~excluded & among.to(excluded.device)
    draw = torch.rand(excluded.shape, generator=generator).to(excluded.device).masked_fill(~allowed, -1.0)
    rank = draw.argsort(1, descending=True).argsort(1)
    return (rank < excluded.sum(1, keepdim=True)) & allowed


@contextmanager
def changed_entries(parameter: nn.Parameter, index: tuple[Tensor, ...], value: float) -> Iterator[None]:
    """Set entries of a weight and put the very same bits back, also after an exception."""
    with torch.no_grad():
        before = parameter[index].clone()
        parameter[index] = value
    try:
        yield
    finally:
        with torch.no_grad():
            parameter[index] = before


def require_residual(accessed: AccessedModel, block: int) -> None:
    """Raise DoesNotApplyError where the residual after a block cannot be set."""
    if block % 2 and (accessed.parallel or accessed.post_norm):
        kind = "parallel" if accessed.parallel else "post-norm"
        raise DoesNotApplyError(
            f"the spike stands after block {block}, an attention block of a {kind} layer, where no residual can be set"
        )
