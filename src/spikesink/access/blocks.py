"""How the residual blocks of a model are found: the modules of every layer, looked up by the layouts of `families`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from spikesink.access import families
from spikesink.access.families import BlockNames, Layout
from spikesink.errors import UnsupportedModelError
from spikesink.positions import placed


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
    def place(self) -> str:
        """Number, layer and kind, as messages name the block."""
        return placed(self.block, self.kind)

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


def find_blocks(model: PreTrainedModel) -> Iterator[list[LayerSites]]:
    """The blocks of every decoder layer, once for each layout that they may have; `verify` says which holds.

    Raises UnsupportedModelError where no layout fits.
    """
    config = model.config.get_text_config(decoder=True)
    layers = decoder_layers(model)
    for layouts in _layouts(config.model_type, layers):
        yield [
            _layer_sites(layer, layout, config, index)
            for index, (layer, layout) in enumerate(zip(layers, layouts, strict=True))
        ]


def _layer_sites(layer: nn.Module, layout: Layout, config: Any, index: int) -> LayerSites:
    kind = "attention" if _attends(layer, layout.attention, config, index) else "mixer"
    post_norm = layout.post_norm(config)
    return LayerSites(
        layer=layer,
        attention=_block_sites(layer, layout.attention, 2 * index + 1, kind, post_norm),
        ffn=_block_sites(layer, layout.ffn, 2 * index + 2, "ffn", post_norm),
        parallel=layout.parallel(config),
        post_norm=post_norm,
    )


def _block_sites(layer: nn.Module, names: BlockNames, block: int, kind: str, post_norm: bool) -> BlockSites:
    inner = _token_mixer(layer, names)
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
        multiplier=_multiplier_of(layer, names.multiplier),
        also=tuple(
            (module, _multiplier_of(layer, number))
            for name, number in names.also
            if (module := _module_of(layer, name)) is not None and module is not inner
        ),
    )


def _norm(layer: nn.Module, name: str | None) -> nn.Module | None:
    module = _named(layer, name) if name else None
    return None if isinstance(module, nn.Identity) else module


def _named(layer: nn.Module, name: str) -> nn.Module:
    module = _module_of(layer, name)
    assert module is not None, "a layout that does not fit its layer"
    return module


def _layouts(model_type: str, layers: nn.ModuleList) -> list[list[Layout]]:
    """Layouts to try, each a layout per layer: the listed one, or every guess whose modules the layers have; last, in
    case the layers differ (OLMo hybrid), the first that fits each."""
    known = (families.FAMILIES[model_type],) if model_type in families.FAMILIES else families.GUESSES
    fitting = [[layout for layout in known if _fits(layer, layout)] for layer in layers]
    odd = next((layer for layer, fits in zip(layers, fitting, strict=True) if not fits), None)
    if odd is not None:
        children = ", ".join(name for name, _ in odd.named_children())
        raise UnsupportedModelError(
            f"The layers of model type '{model_type}' ({type(odd).__name__}: {children}) have none of the layouts "
            f"that spikesink can read. To add one, see access/families.py."
        )
    same = [[layout] * len(layers) for layout in known if all(layout in fits for fits in fitting)]
    return same or [[fits[0] for fits in fitting]]


def _fits(layer: nn.Module, layout: Layout) -> bool:
    return all(
        _token_mixer(layer, names) is not None and all(_module_of(layer, name) is not None for name in names.names())
        for names in (layout.attention, layout.ffn)
    )


def _token_mixer(layer: nn.Module, names: BlockNames) -> nn.Module | None:
    """What a block computes with: its `inner`, or what a hybrid model has in its place; None where it has neither."""
    candidates = (_module_of(layer, name) for name in (names.inner, *names.mixers))
    return next((module for module in candidates if module is not None), None)


def _module_of(layer: nn.Module, name: str) -> nn.Module | None:
    """The module of this dotted name, None where there is none."""
    module: Any = layer
    for part in name.split("."):
        module = getattr(module, part, None)
    return module if isinstance(module, nn.Module) else None


def _attends(layer: nn.Module, names: BlockNames, config: Any, layer_index: int) -> bool:
    """Whether this layer is declared to have attention: a hybrid model puts a recurrence or convolution into others."""
    types = getattr(config, "layer_types", None)
    linear = types is not None and len(types) > layer_index and types[layer_index] in families.RECURRENT_TYPES
    return _module_of(layer, names.inner) is not None and not linear


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The list of decoder layers of a causal LM, of its text decoder if it is multimodal."""
    decoder, base = model.get_decoder(), model.base_model
    names = ("language_model", "decoder", "model", "encoder")
    inner = [getattr(root, name, None) for root in (decoder, base) for name in names]
    for root in (decoder, base, *inner):
        for name in ("layers", "h", "blocks", "layer"):
            layers = getattr(root, name, None)
            if isinstance(layers, nn.ModuleList) and len(layers) > 0:
                return layers
    raise UnsupportedModelError(
        f"{type(model).__name__} has no list of decoder layers (looked for layers, h, blocks, layer); "
        "only decoder-only Transformers can be measured."
    )


def _multiplier_of(layer: nn.Module, name: str) -> float:
    """The number that an output is multiplied with before it is added (granite, MiniCPM, Falcon H1); 1 without one."""
    numbers = (getattr(layer, each, None) for each in (name, "residual_scale"))
    return next((float(number) for number in numbers if isinstance(number, int | float)), 1.0)
