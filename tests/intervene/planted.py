"""A tiny Llama and what was found in it, written down by hand."""

from contextlib import ExitStack

import torch
from hand_llama import Hand
from tiny import tiny, token_ids

from spikesink.access import access, full_batch, observing, run
from spikesink.intervene import Targets

EDIT_BLOCK, STEP_DOWN = 2, 6


class Case:
    """The model, ids, its residual after EDIT_BLOCK, and which tokens spike there."""

    def __init__(self) -> None:
        self.accessed = access(tiny("llama"))
        self.model = self.accessed.model
        self.ids = token_ids(sequences=3, tokens=11)
        hand = Hand(self.model)
        self.plain = hand(self.ids)
        self.before = hand.residuals[EDIT_BLOCK]
        channels = (5, 17)
        largest = self.before[..., list(channels)].abs().amax(-1)
        # Half-way between two values, so that rounding cannot move a token across.
        ordered = largest.flatten().sort(descending=True).values
        limit = float((ordered[6] + ordered[7]) / 2)
        self.spikes = largest >= limit
        drawn = torch.Generator().manual_seed(5)
        self.targets = Targets(
            has_spikes=True,
            spike=float(self.before.abs().max()),
            edit_block=EDIT_BLOCK,
            step_up_block=EDIT_BLOCK,
            step_down_block=STEP_DOWN,
            step_blocks=(EDIT_BLOCK, STEP_DOWN),
            channels=channels,
            magnitude_min=limit,
            has_sinks=True,
            sink_positions=(0, 2),
            sink_heads=((3, 1), (3, 2), (5, 0)),
            spike_states={b: torch.randn(24, generator=drawn) * 3 for b in range(EDIT_BLOCK, 7)},
            ordinary_states={b: torch.randn(24, generator=drawn) for b in range(EDIT_BLOCK, 7)},
            ordinary_max=0.7 * limit,
            amplifier=((5, 3), (5, 31), (17, 8)),
            direction=torch.nn.functional.normalize(torch.randn(24, generator=drawn), dim=0),
        )

    def logits(self, *contexts, ids=None):
        """Logits of the accessed model with these contexts open."""
        with ExitStack() as stack:
            for context in contexts:
                stack.enter_context(context)
            stack.enter_context(observing(self.accessed, []))
            return run(self.accessed, full_batch(self.ids if ids is None else ids))


def close(one, other):
    """Equal up to float32."""
    return torch.allclose(one, other, atol=2e-4, rtol=2e-4)
