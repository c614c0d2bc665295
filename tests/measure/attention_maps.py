"""Hand-made attention maps, shown to an observer in row blocks as the attention backend does."""

import torch

from spikesink.access.attention import sums_of
from spikesink.access.protocol import listeners
from spikesink.observer import AttentionInputs, AttentionRows, Batch, full_batch


def feed(measure, weights, valid=None, rows=2, blocks=(1,)):
    """Show a whole map (batch, head, query, key) as that of these blocks."""
    batch, heads, tokens, _ = weights.shape
    ids = torch.zeros(batch, tokens, dtype=torch.long)
    measure.on_batch(full_batch(ids) if valid is None else Batch(ids, valid))
    seen = valid if valid is not None else torch.ones(batch, tokens, dtype=torch.bool)
    counts = torch.stack([seen[:, k:].sum(1) for k in range(tokens)], dim=1)
    states = torch.zeros(batch, heads, tokens, 3)
    for block in blocks:
        measure.on_attention(AttentionInputs(block, states, states, states, 1.0, None, lambda: counts))
        for start in range(0, tokens, rows):
            stop = min(start + rows, tokens)
            shown = AttentionRows(
                block=block, query_start=start, query_stop=stop, key_start=0, total_queries=tokens,
                weights=weights[:, :, start:stop, :stop], virtual_mass=None, value=states, output=states,
                visible_rows=lambda: torch.ones(1),
            )  # fmt: skip
            for listen in listeners([measure], "on_attention_rows"):
                listen(shown)
            for sums in sums_of(shown, valid):
                for listen in listeners([measure], "on_attention_sums"):
                    listen(sums)
