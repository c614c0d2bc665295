"""What every intervention is: a name, what it edits, its controls, and a context manager that undoes itself.

An intervention is a function decorated with `intervention`, in the file of what it edits: elements, states, sinks,
inputs, weights. The decorator puts it into the table, `--which`, the record and the restore tests.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, TypedDict

import torch
from torch import Tensor
from transformers import PreTrainedModel

from spikesink.access import AccessedModel, access
from spikesink.errors import DoesNotApplyError, InputError, did_you_mean
from spikesink.positions import layer_of, placed


@dataclass(frozen=True)
class Targets:
    """Where a model's spikes and sinks are, and constants learned there: what interventions act on.

    Blocks are 1-based, heads, channels and positions 0-based. States are of shape (channel,), float32.
    """

    has_spikes: bool
    spike: float
    """Largest magnitude after any block."""
    edit_block: int
    """The block after which spikes are complete: the last step-up block (in a parallel layer the FFN, behind which the
    residual is), or the verdict's block where no rule names one."""
    step_up_block: int | None
    """The step-up FFN that writes most of the spike, whose s* and W_down are meant; else the last step-up block."""
    step_down_block: int | None
    """The first step-down block; None where no block takes the spikes away."""
    channels: tuple[int, ...]
    """Spike channels, the largest first."""
    magnitude_min: float
    """Magnitude after `edit_block` from which an element is part of a spike."""
    massive_channels: tuple[int, ...] = ()
    """Every channel that meets Sun et al. 2024's criterion between the step blocks; some are below `magnitude_min`."""
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
    step_blocks: tuple[int, ...] = ()
    """Every step-up and step-down block: all that write the spike, or take it away."""
    sequences: int = 0
    """Held-out sequences that all this was learned on."""
    spike_tokens: int = 0
    """Spike tokens among them."""
    attention_behind: int | None = None
    """Attention blocks behind `edit_block`: with none, no other token reads a spike that is whole."""
    same_context: float = 0.0
    """Largest share of them that are one token behind the same ones (BOS), whose state is one whatever the model."""

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


class Options(TypedDict, total=False):
    """What every intervention takes: `control`, one of its controls; `seed` of what a control draws."""

    control: str | None
    seed: int


@dataclass(frozen=True)
class Strength:
    """What the option `strength` of an intervention means, and the levels that a sweep takes by default."""

    meaning: str
    nothing: float
    """The level that changes nothing."""
    most: float
    levels: tuple[float, ...]


DIVISOR = Strength("divided by", 1.0, math.inf, (1.0, 5.0, 10.0, 20.0, 40.0, 100.0))
SHARE = Strength("share taken away", 0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 0.9, 1.0))


@dataclass(frozen=True)
class Intervention:
    """A named change of a model. Calling it gives a context manager: `with zero_spikes(model, targets): ...`.

    `model` is an accessed model or a Hugging Face causal LM; options are those of the function it was made from, and
    `control=NAME, seed=N` makes the change of the same size elsewhere. Raises DoesNotApplyError with the reason.
    """

    name: str
    edits: str
    """What it takes away or changes: `spikes`, `sinks`, `tokens` or `input`."""
    summary: str
    controls: tuple[str, ...]
    function: Callable[..., Context]
    reach: str
    """Where the model begins to be another, of REACHES."""
    strength: Strength | None = None
    """What its option `strength` means; None where it has none."""

    def __call__(
        self, model: AccessedModel | PreTrainedModel, targets: Targets, *, control: str | None = None, **options: Any
    ) -> Context:
        if control is not None and control not in self.controls:
            raise InputError(f"Unknown control '{control}' of {self.name}{did_you_mean(control, self.controls)}")
        if "strength" in options:
            self.check_strength(options["strength"])
        accessed = model if isinstance(model, AccessedModel) else access(model)
        if self.edits == "spikes" and not targets.has_spikes:
            raise DoesNotApplyError("the model has no spikes")
        if self.edits == "sinks" and not targets.has_sinks:
            raise DoesNotApplyError("the model has no sinks")
        return self.function(accessed, targets, control=control, **options)

    def untouched_layers(self, targets: Targets) -> int:
        """How many of the first layers compute what they did."""
        if self.reach == "residual" and targets.has_spikes:
            return targets.edit_block // 2
        if self.reach == "block" and targets.step_up_block is not None:
            return layer_of(min([targets.step_up_block, *targets.step_blocks]))
        return 0

    def check_strength(self, level: float) -> None:
        """Raises InputError for a level that means nothing here."""
        of = self.strength
        if of is None:
            raise InputError(f"{self.name} has no strength.")
        if not (of.nothing <= level <= of.most and math.isfinite(level)):
            most = f"to {of.most:g}" if math.isfinite(of.most) else "or more"
            raise InputError(f"strength of {self.name} is {level:g}; expected {of.nothing:g} {most} ({of.meaning}).")


INTERVENTIONS: dict[str, Intervention] = {}
"""Every intervention by name; `intervention` puts them here."""
EDITS = ("spikes", "sinks", "tokens", "input")
"""What interventions edit, in the order of the table."""
REACHES = ("start", "block", "residual")
"""The first place an intervention may change: the first block, the first step-up block, what follows `edit_block`."""


def intervention(
    edits: str, controls: tuple[str, ...], reach: str = "start", strength: Strength | None = None
) -> Callable[[Callable[..., Context]], Intervention]:
    """Register a function (accessed, targets, *, control, seed, ...) -> context manager as an intervention.

    edits: what it takes away or changes, of EDITS. controls: names of changes of the same size elsewhere, one of which
    the function gets as `control`. reach: the first place that it or a control changes, of REACHES; no layer before it
    is computed again. Its name is the function's and its summary the first line of the docstring.
    """
    assert edits in EDITS and reach in REACHES, (edits, reach)

    def register(function: Any) -> Intervention:
        summary = function.__doc__.strip().splitlines()[0]
        made = Intervention(function.__name__, edits, summary, controls, function, reach, strength)
        INTERVENTIONS[made.name] = made
        return made

    return register


def seeded(seed: int) -> torch.Generator:
    """A random generator with this seed."""
    return torch.Generator().manual_seed(seed)


def random_tokens(excluded: Tensor, generator: torch.Generator, among: Tensor | None = None) -> Tensor:
    """As many tokens in each row as `excluded` has, drawn from the others; (batch, token) bool.

    `among` (batch or 1, token) narrows the choice; a row with too few others gives all of them.
    """
    allowed = ~excluded if among is None else ~excluded & among.to(excluded.device)
    draw = torch.rand(excluded.shape, generator=generator).to(excluded.device).masked_fill(~allowed, -1.0)
    rank = draw.argsort(1, descending=True).argsort(1)
    return (rank < excluded.sum(1, keepdim=True)) & allowed


def require_residual(accessed: AccessedModel, block: int) -> None:
    """Raise DoesNotApplyError where the residual after a block cannot be set."""
    if block % 2 and (accessed.parallel or accessed.post_norm):
        kind = "parallel" if accessed.parallel else "post-norm"
        raise DoesNotApplyError(
            f"the spike stands after block {placed(block)}, of a {kind} layer, where no residual can be set"
        )
