"""An accessed model: a Hugging Face causal LM whose residual blocks, weights and facts are found and named."""

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from spikesink.access.families import (
    BlockNames,
    Layout,
    attends,
    decoder_layers,
    module_of,
    multiplier_of,
    token_mixer,
)
from spikesink.limits import panics_raised


@dataclass(frozen=True)
class BlockSites:
    """The modules of one residual block that capture hooks."""

    block: int
    kind: str
    """`attention`, `ffn`, or `mixer` where a hybrid model has a recurrence or convolution in attention's place."""
    inner: nn.Module
    reader: nn.Module
    """The first module that reads the residual stream: its input is the block's input."""
    write: nn.Module
    """The module whose output, times `multiplier`, is added to the residual stream."""
    input_norm: nn.Module | None
    output_norm: nn.Module | None
    residual_norm: nn.Module | None
    """The norm that acts on the residual itself in a post-norm layer: H' = Norm(H + F)."""
    multiplier: float
    also: tuple[tuple[nn.Module, float], ...] = ()
    """Further modules whose outputs, each times a number, are part of the same write."""

    @property
    def writers(self) -> tuple[tuple[nn.Module, float], ...]:
        """Every module whose output, times its number, is added to the residual stream."""
        return ((self.write, self.multiplier), *self.also)


@dataclass(frozen=True)
class LayerSites:
    """One decoder layer: an attention block (a mixer in some layers of a hybrid model) and an FFN block."""

    layer: nn.Module
    attention: BlockSites
    ffn: BlockSites
    parallel: bool
    post_norm: bool

    @property
    def mixers(self) -> list[nn.Module]:
        """What mixes tokens without attending: a recurrence or convolution in attention's place or beside it."""
        instead = [self.attention.inner] if self.attention.kind == "mixer" else []
        beside = [module for module, _ in self.attention.also]
        return [*instead, *beside, *(module for module in self.layer.modules() if isinstance(module, nn.Conv1d))]


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
        """Longest sequence the positions allow, None where the config names no limit."""
        limit = getattr(self.config, "max_position_embeddings", None) or getattr(self.config, "n_positions", None)
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


def find_layers(model: PreTrainedModel, layouts: list[Layout]) -> list[LayerSites]:
    """The sites of every decoder layer, each under its layout."""
    config = model.config.get_text_config(decoder=True)
    found = []
    for index, (layer, layout) in enumerate(zip(decoder_layers(model), layouts, strict=True)):
        kind = "attention" if attends(layer, layout.attention, config, index) else "mixer"
        post_norm = layout.post_norm(config)
        found.append(
            LayerSites(
                layer=layer,
                attention=_block_sites(layer, layout.attention, 2 * index + 1, kind, post_norm),
                ffn=_block_sites(layer, layout.ffn, 2 * index + 2, "ffn", post_norm),
                parallel=layout.parallel(config),
                post_norm=post_norm,
            )
        )
    return found


def _block_sites(layer: nn.Module, names: BlockNames, block: int, kind: str, post_norm: bool) -> BlockSites:
    inner = token_mixer(layer, names)
    assert inner is not None, "a layout that does not fit its layer"
    # In a post-norm layer the norms act on the residual itself: they neither feed the block nor shape its write.
    input_norm = None if post_norm else _norm(layer, names.input_norm)
    output_norm = None if post_norm else _norm(layer, names.output_norm)
    residual_norm = _norm(layer, names.output_norm or names.input_norm) if post_norm else None
    first = _named(layer, names.first) if names.first else inner
    return BlockSites(
        block=block,
        kind=kind,
        inner=inner,
        reader=input_norm or first,
        write=output_norm or (_named(layer, names.write) if names.write else inner),
        input_norm=input_norm,
        output_norm=output_norm,
        residual_norm=residual_norm,
        multiplier=multiplier_of(layer, names.multiplier),
        also=tuple(
            (module, multiplier_of(layer, number))
            for name, number in names.also
            if (module := module_of(layer, name)) is not None and module is not inner
        ),
    )


def _norm(layer: nn.Module, name: str | None) -> nn.Module | None:
    module = _named(layer, name) if name else None
    return None if isinstance(module, nn.Identity) else module


def _named(layer: nn.Module, name: str) -> nn.Module:
    module = module_of(layer, name)
    assert module is not None, "a layout that does not fit its layer"
    return module
