"""What checks see of a forward pass: writes and residuals, calls, attention maps; ours and the family's eager one."""

import math
from collections import Counter
from contextlib import ExitStack
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from spikesink.access.capture import Tap, hooked, inputs_of, observing, run, without_gradient
from spikesink.access.comparison import difference
from spikesink.access.model import AccessedModel
from spikesink.errors import SpikesinkError, VerificationError, short
from spikesink.observer import AttentionInputs, AttentionRows, Batch, Observer
from spikesink.positions import layer_of


class Additivity(Observer):
    """How far each block's write is from adding up to the next residual; holds one residual at a time.

    Infinitely far where a residual does not follow the writes of all blocks since the last one, and no others: one that
    is read before its block has written is the last one again, and adds up to nothing. What the FFN of a parallel layer
    reads is held against what its attention reads: both writes add up in a layer that is not parallel, too.
    """

    def __init__(self, accessed: AccessedModel) -> None:
        self.differences: dict[int, float] = {}
        self._sites = {sites.block: sites for sites in accessed.blocks()}
        self._before: tuple[int, Tensor] | None = None
        self._writes: list[tuple[int, Tensor]] = []

    def on_write(self, block: int, write: Tensor) -> None:
        # Copies, since a layer may go on to change its tensors in place.
        self._writes.append((block, write.clone()))

    def on_read(self, block: int, entering: Tensor) -> None:
        """What enters the FFN of a parallel layer, behind its norm."""
        if self._before is not None:
            norm, before = self._sites[block].input_norm, self._before[1]
            self._note(block, difference(before if norm is None else norm(before), entering))

    def on_residual(self, block: int, hidden: Tensor) -> None:
        if block > 0 and self._before is not None:
            last, rebuilt = self._before
            for _, write in self._writes:
                rebuilt = rebuilt + write
            norm = self._sites[block].residual_norm
            whole = {of for of, _ in self._writes} == set(range(last + 1, block + 1))
            self._note(block, difference(rebuilt if norm is None else norm(rebuilt), hidden) if whole else math.inf)
        self._before, self._writes = (block, hidden.clone()), []

    def _note(self, block: int, wrong: float) -> None:
        self.differences[block] = max(wrong, self.differences.get(block, 0.0))


class Writes(Observer):
    """What every attention block writes."""

    def __init__(self) -> None:
        self.writes: dict[int, Tensor] = {}

    def on_write(self, block: int, write: Tensor) -> None:
        if block % 2:
            self.writes[block] = write.clone()


class Calls(Observer):
    """How often every layer and attention ran, the most keys a query saw, and the largest residual."""

    def __init__(self) -> None:
        self.layers: Counter[int] = Counter()
        self.attentions: Counter[int] = Counter()
        self.keys_seen: dict[int, int] = {}
        self.largest = 0.0

    def on_residual(self, block: int, hidden: Tensor) -> None:
        self.layers[block] += 1
        self.largest = max(self.largest, float(hidden.abs().max()))

    def on_attention(self, inputs: AttentionInputs) -> None:
        self.attentions[inputs.block] += 1

    def on_attention_rows(self, rows: AttentionRows) -> None:
        keys = int(rows.visible.sum(-1).max())
        self.keys_seen[rows.block] = max(keys, self.keys_seen.get(rows.block, 0))


class Maps(Observer):
    """Attention maps (1, head, query, key) of every block."""

    def __init__(self) -> None:
        self.maps: dict[int, Tensor] = {}
        self.has_virtual_keys = False

    def on_attention_rows(self, rows: AttentionRows) -> None:
        self.has_virtual_keys |= rows.virtual_mass is not None
        tokens, weights = rows.total_queries, rows.weights
        whole = self.maps.setdefault(rows.block, weights.new_zeros(*weights.shape[:2], tokens, tokens))
        whole[:, :, rows.query_start : rows.query_stop, rows.key_start :][..., : weights.shape[-1]] = weights


class Residuals(Observer):
    """The residual after every block, padding left out: (tokens, channel) by sequence."""

    def __init__(self) -> None:
        self.after: dict[int, list[Tensor]] = {}

    def on_residual(self, block: int, hidden: Tensor) -> None:
        if block > 0:
            rows = zip(hidden, self.batch.valid.to(hidden.device), strict=True)
            self.after[block] = [row[valid].clone() for row, valid in rows]


class Against(Observer):
    """Compares attention writes with ones that were kept, and lets those go."""

    def __init__(self, kept: dict[int, Tensor], valid: Tensor | None) -> None:
        self.kept = kept
        self.valid = valid
        self.differences: dict[int, float] = {}

    def on_write(self, block: int, write: Tensor) -> None:
        if block in self.kept:
            self.differences[block] = difference(self.kept.pop(block), write, self.valid)


def check_calls(accessed: AccessedModel, calls: Calls) -> None:
    """Every layer once, attention in exactly those that are declared to have it; raises VerificationError."""
    declared = {sites.block for sites in accessed.attending}
    missing = sorted(declared - set(calls.attentions))
    if missing:
        raise VerificationError(
            f"{len(missing)} of {accessed.n_layers} layers (first: layer_index {layer_of(missing[0])}) do not call "
            "attention through transformers' attention registry; their attention cannot be measured exactly."
        )
    if not declared:
        raise VerificationError("No layer of the model attends, so it has no attention sinks to measure; refused.")
    unexpected = [sites.block for sites in accessed.blocks() if sites.kind == "mixer" and calls.attentions[sites.block]]
    if unexpected:
        raise VerificationError(
            f"Layer_index {layer_of(unexpected[0])} attends although its config declares a layer without attention; "
            "refused."
        )
    for what, counts, blocks in (
        ("runs", calls.layers, [sites.ffn.block for sites in accessed.layers]),
        ("attends", calls.attentions, sorted(declared | set(calls.attentions))),
    ):
        odd = next((block for block in blocks if counts[block] != 1), None)
        if odd is not None:
            raise VerificationError(
                f"Layer_index {layer_of(odd)} {what} {counts[odd]} times in one forward pass; expected once. A layer "
                "with more than one pass (a loop, differential attention) has no single residual or attention map."
            )


def watched(accessed: AccessedModel, batch: Batch, *observers: object) -> Tensor:
    """One forward under the measuring attention; returns the logits.

    A model that fails under it is refused: VerificationError with the reason.
    """
    with observing(accessed, observers):
        try:
            return run(accessed, batch)
        except SpikesinkError:
            raise
        except Exception as error:
            raise _failed("with spikesink's attention and hooks", error) from error


def watched_eager(accessed: AccessedModel, batch: Batch, *observers: object, **options: Any) -> Any:
    """One forward under the family's own eager attention, with the same hooks; returns the model's output."""
    model: PreTrainedModel = accessed.model
    before = model.config._attn_implementation or "eager"
    training = model.training
    model.eval()
    with ExitStack() as stack:
        stack.callback(model.train, training)
        stack.callback(model.set_attn_implementation, before)
        model.set_attn_implementation("eager")
        stack.enter_context(hooked(accessed, Tap(observers=list(observers))))
        stack.enter_context(without_gradient(model))
        try:
            return model(**inputs_of(batch, accessed.device), use_cache=False, **options)
        except SpikesinkError:
            raise
        except Exception as error:
            raise _failed("with its own eager attention", error) from error


def _failed(how: str, error: Exception) -> VerificationError:
    text = short(error)
    if "MaskPlan" in text:
        return VerificationError(
            "The model computes with the attention mask instead of handing it on (sparse, indexed or biased "
            "attention), so the mask registry does not tell which keys a query sees; refused."
        )
    return VerificationError(f"The model's forward pass fails {how} ({type(error).__name__}: {text}); refused.")
