"""The decoder as a Hugging Face model: save_pretrained, from_pretrained, generate and scan work on every spec.

A layer is an attention block and a feed-forward block, with norms where the arrangement puts them. No module of
attention is defined here: transformers reads the text of this file to tell whether the implementation can be set.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import LongTensor, Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from spikesink.zoo.arrangements import PostNorm
from spikesink.zoo.attention import Attention, AttentionInPlace
from spikesink.zoo.context import Context, RegisterCache
from spikesink.zoo.ffn import AttentionFFN
from spikesink.zoo.gates import ConstantGate
from spikesink.zoo.normalisers import LearnedSinks, Registers, RegisterVectors, VirtualKeyValues
from spikesink.zoo.norms import DynamicTanh
from spikesink.zoo.positions import LearnedPosition, RoPE, rotary_angles
from spikesink.zoo.spec import DecoderSpec


class SpikesinkDecoderConfig(PreTrainedConfig):
    """The spec as a Hugging Face config; what other tools look up (`hidden_size`, ...) follows from it."""

    model_type = "spikesink_decoder"
    keys_to_ignore_at_inference = ["cache"]  # noqa: RUF012

    spec: dict[str, Any] | DecoderSpec | None = None
    use_cache: bool = True
    tie_word_embeddings: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        spec = DecoderSpec.parse({} if self.spec is None else self.spec)
        # resize_token_embeddings changes the size in the config alone.
        if "vocab_size" in kwargs:
            spec = spec.model_copy(update={"vocab_size": int(kwargs["vocab_size"])})
        self.spec = spec.model_dump(mode="json")
        derived = {
            "vocab_size": spec.vocab_size,
            "hidden_size": spec.d_model,
            "num_hidden_layers": spec.n_layers,
            "num_attention_heads": spec.n_heads,
            "num_key_value_heads": spec.n_kv_heads,
            "head_dim": spec.d_head,
            "max_position_embeddings": spec.max_positions,
            "is_post_norm": isinstance(spec.arrangement, PostNorm),
        }
        self.tie_word_embeddings = spec.tied_embeddings
        super().__post_init__(**{**kwargs, **derived})

    @property
    def decoder_spec(self) -> DecoderSpec:
        return DecoderSpec.parse(self.spec)


class DecoderLayer(GradientCheckpointingLayer):
    """Two residual blocks; a norm that the arrangement leaves out is an identity. (batch, token, d_model) -> same."""

    def __init__(self, spec: DecoderSpec, layer_idx: int) -> None:
        super().__init__()
        where = spec.arrangement
        self.post_norm = isinstance(where, PostNorm)

        def norm(present: bool) -> nn.Module:
            return spec.norm.build(spec.d_model) if present else nn.Identity()

        self.input_layernorm = norm(where.input_norm)
        self.self_attn = Attention(spec, layer_idx)
        self.post_attention_norm = norm(where.output_norm)
        self.ffn_layernorm = norm(where.input_norm)
        if isinstance(spec.ffn, AttentionFFN):
            self.mlp: nn.Module = AttentionInPlace(spec, spec.n_layers + layer_idx)
        else:
            self.mlp = spec.ffn.build(spec.d_model)
        self.post_ffn_norm = norm(where.output_norm)

    def forward(
        self, hidden_states: Tensor, context: Context, registers: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """With registers (1, register, d_model), also what this layer makes of them."""
        if registers is None or context.registers is None:
            return self._blocks(hidden_states, context, _call)
        prefix = RegisterCache()
        registers = self._blocks(registers, replace(context.registers, cache=prefix), _call_unwatched)
        return self._blocks(hidden_states, replace(context, prefix=prefix), _call), registers

    def _blocks(self, hidden: Tensor, context: Context, call: Callable[..., Any]) -> Tensor:
        write, _ = call(self.self_attn, call(self.input_layernorm, hidden), context)
        hidden = self._added(hidden, write, self.post_attention_norm, call)
        write = call(self.mlp, call(self.ffn_layernorm, hidden), context)
        return self._added(hidden, write, self.post_ffn_norm, call)

    def _added(self, hidden: Tensor, write: Tensor, norm: nn.Module, call: Callable[..., Any]) -> Tensor:
        return call(norm, hidden + write) if self.post_norm else hidden + call(norm, write)


def _call(module: nn.Module, *inputs: Any) -> Any:
    return module(*inputs)


def _call_unwatched(module: nn.Module, *inputs: Any) -> Any:
    """Past the module's hooks: who watches the residual stream of the tokens must not see registers in it."""
    return module.forward(*inputs)


class SpikesinkDecoderPreTrainedModel(PreTrainedModel):
    """What the decoder with and without its head share."""

    config_class = SpikesinkDecoderConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["DecoderLayer"]  # noqa: RUF012
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": DecoderLayer,
        "attentions": OutputRecorder(Attention, index=1, layer_name="self_attn"),
    }

    def _init_weights(self, module: nn.Module) -> None:
        spec = self.config.decoder_spec
        start = spec.initialisation
        if isinstance(module, nn.Linear):
            writes = getattr(module, "writes_residual", False)
            init.normal_(module.weight, std=start.matrix_std(module.in_features, writes=writes, n_layers=spec.n_layers))
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding | RegisterVectors):
            init.normal_(module.weight, std=start.std)
        elif isinstance(module, VirtualKeyValues):
            init.normal_(module.key, std=start.std)
            init.normal_(module.value, std=start.std)
        elif isinstance(module, ConstantGate | LearnedSinks):
            init.zeros_(module.logits)
        elif isinstance(module, nn.RMSNorm | nn.LayerNorm | DynamicTanh):
            init.ones_(module.weight)
            bias = getattr(module, "bias", None)
            if bias is not None:
                init.zeros_(bias)
            if isinstance(module, DynamicTanh):
                init.constant_(module.alpha, module.alpha_init)


class SpikesinkDecoderModel(SpikesinkDecoderPreTrainedModel):
    """Embedding, layers and final norm."""

    def __init__(self, config: SpikesinkDecoderConfig) -> None:
        super().__init__(config)
        spec = self.spec = config.decoder_spec
        self.embed_tokens = nn.Embedding(spec.vocab_size, spec.d_model)
        virtual = spec.virtual_keys
        self.registers = RegisterVectors(virtual.n, spec.d_model) if isinstance(virtual, Registers) else None
        learned = isinstance(spec.position, LearnedPosition)
        self.embed_positions = nn.Embedding(spec.max_positions, spec.d_model) if learned else None
        self.layers = nn.ModuleList([DecoderLayer(spec, index) for index in range(spec.n_layers)])
        # A post-norm decoder ends in the last block's norm.
        self.norm = nn.Identity() if isinstance(spec.arrangement, PostNorm) else spec.norm.build(spec.d_model)
        self.gradient_checkpointing = False
        _mark_writers(self)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: LongTensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Got input_ids and inputs_embeds, or neither; expected exactly one of them.")
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        cache = self._cache(cache, use_cache)
        seen = cache.get_seq_length() if cache is not None else 0
        positions = position_ids
        if positions is None:
            positions = hidden.new_ones(1, hidden.shape[1]).cumsum(1).long() + (seen - 1)
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden,
            attention_mask=attention_mask,
            cache=cache,
            position_ids=position_ids,
        )
        if self.embed_positions is not None:
            hidden = hidden + self.embed_positions(positions)
        context = self._context(positions, hidden, mask, cache, kwargs)
        registers = self.registers() if self.registers is not None else None
        for layer in self.layers:
            if registers is None:
                hidden = layer(hidden, context)
            else:
                hidden, registers = layer(hidden, context, registers)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden), cache=cache)  # type: ignore[call-arg]

    def _context(
        self, positions: Tensor, embedding: Tensor, mask: Any, cache: Cache | None, options: dict[str, Any]
    ) -> Context:
        attention = self.config._attn_implementation or "eager"
        own = None
        if self.registers is not None:
            vectors = self.registers()
            before = torch.arange(-vectors.shape[1], 0, device=positions.device)[None]
            own = Context(before, vectors, None, rotary=self._rotary(before, vectors))
        rotary = self._rotary(positions, embedding)
        return Context(positions, embedding, mask, cache, rotary, None, own, attention, options)

    def _rotary(self, positions: Tensor, like: Tensor) -> dict[float, tuple[Tensor, Tensor]]:
        position = self.spec.position
        if not isinstance(position, RoPE):
            return {}
        thetas = {position.theta_of(layer) for layer in range(self.spec.n_layers)} - {0.0}
        return {theta: rotary_angles(positions, self.spec.d_head, theta, like.dtype) for theta in thetas}

    def _cache(self, cache: Cache | None, use_cache: bool | None) -> Cache | None:
        """The cache to fill; attention in place of the FFN needs layers that the config's count does not name."""
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        if cache is not None and isinstance(self.spec.ffn, AttentionFFN):
            while len(cache.layers) < 2 * self.spec.n_layers:
                cache.layers.append(DynamicLayer())
        return cache


class SpikesinkDecoderForCausalLM(SpikesinkDecoderPreTrainedModel, GenerationMixin):
    """The decoder with its language-model head: logits (batch, token, vocabulary)."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: SpikesinkDecoderConfig) -> None:
        super().__init__(config)
        spec = config.decoder_spec
        self.model = SpikesinkDecoderModel(config)
        self.lm_head = nn.Linear(spec.d_model, spec.vocab_size, bias=False)
        self.logit_softcap = spec.logit_softcap
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: LongTensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        if self.logit_softcap is not None:
            logits = torch.tanh(logits / self.logit_softcap) * self.logit_softcap
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            cache=outputs.cache,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )  # type: ignore[call-arg]


def _mark_writers(model: nn.Module) -> None:
    """Mark the matrices whose output goes into the residual stream, which some initialisations scale down."""
    for name, module in model.named_modules():
        if name.endswith(("o_proj", "down_proj")):
            module.writes_residual = True  # type: ignore[assignment]


def build(spec: DecoderSpec, **config: Any) -> SpikesinkDecoderForCausalLM:
    """A decoder with fresh weights, from torch's random state; under `torch.device("meta")` without any."""
    return SpikesinkDecoderForCausalLM(SpikesinkDecoderConfig(spec=spec.model_dump(mode="json"), **config))


# Not the copy that `export(code=True)` puts beside weights, which would take the place of this one.
if __name__ == "spikesink.zoo.decoder":
    AutoConfig.register("spikesink_decoder", SpikesinkDecoderConfig, exist_ok=True)
    AutoModelForCausalLM.register(SpikesinkDecoderConfig, SpikesinkDecoderForCausalLM, exist_ok=True)
