"""An accessed model: a Hugging Face causal LM whose residual blocks, weights and facts are found and named."""

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from spikesink.access.blocks import BlockSites, LayerSites
from spikesink.limits import panics_raised


@dataclass
class AccessedModel:
    """A verified model: `.model` is the Hugging Face `...ForCausalLM`, `.path` its folder (None if made in memory)."""

    model: PreTrainedModel
    tokenizer: Any | None
    path: Path | None
    layers: list[LayerSites]
    provenance: dict[str, Any] = field(default_factory=dict)
    load_s: float = 0.0
    """Seconds that loading and verifying took."""
    verified_before: bool = False
    """Whether an earlier verification of the same was taken over."""
    no_tokenizer: str | None = None
    """Why the checkpoint's tokenizer could not be loaded; None where it was, or nobody tried."""

    @property
    def why_untokenised(self) -> str:
        """The reason in brackets, to stand in a sentence; empty where none is known."""
        return f" ({self.no_tokenizer})" if self.no_tokenizer else ""

    @property
    def name(self) -> str:
        return str(self.provenance.get("name", self.model.config.model_type))

    @property
    def config(self) -> Any:
        """The text decoder's config, also of a multimodal model."""
        return self.model.config.get_text_config(decoder=True)

    @property
    def _embedding(self) -> Tensor:
        return cast(nn.Embedding, self.model.get_input_embeddings()).weight

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def n_blocks(self) -> int:
        return 2 * len(self.layers)

    @property
    def d_model(self) -> int:
        """Channels of the residual stream, which a family may project embeddings to (OPT)."""
        return int(self.config.hidden_size)

    @property
    def vocab_size(self) -> int:
        return int(self._embedding.shape[0])

    @property
    def max_positions(self) -> int | None:
        """Longest sequence the positions allow, None where the config names no limit.

        Of a scaled rotation (YaRN), the scaled one, where the config gives the length before scaling as its limit.
        """
        limit = getattr(self.config, "max_position_embeddings", None) or getattr(self.config, "n_positions", None)
        rope = getattr(self.config, "rope_parameters", None) or {}
        original, factor = rope.get("original_max_position_embeddings"), rope.get("factor")
        if limit and original and factor:
            limit = max(limit, int(original * factor))
        return int(limit) if limit else None

    @property
    def device(self) -> torch.device:
        return self._embedding.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def parallel(self) -> bool:
        return self.layers[0].parallel

    @property
    def post_norm(self) -> bool:
        return self.layers[0].post_norm

    @property
    def bos_id(self) -> int | None:
        """The BOS token, of the tokenizer or else the config; None where neither names one."""
        token = getattr(self.tokenizer, "bos_token_id", None)
        token = getattr(self.config, "bos_token_id", None) if token is None else token
        if isinstance(token, list):
            token = token[0] if token else None
        return None if token is None else int(token)

    def token_text(self, token_id: int) -> str:
        """The token as text; `<id>` where there is no tokenizer, or none that can say."""
        if self.tokenizer is not None:
            with suppress(Exception), panics_raised():
                return str(self.tokenizer.decode([token_id]))
        return f"<{token_id}>"

    @property
    def attending(self) -> list[BlockSites]:
        """The attention blocks, in order: one of each layer, except in a hybrid model."""
        return [layer.attention for layer in self.layers if layer.attention.kind == "attention"]

    @property
    def hybrid(self) -> bool:
        """True where tokens are mixed by something else than attention as well."""
        return any(layer.mixers for layer in self.layers)

    def blocks(self) -> list[BlockSites]:
        """All residual blocks in order, block 1 first."""
        return [sites for layer in self.layers for sites in (layer.attention, layer.ffn)]
