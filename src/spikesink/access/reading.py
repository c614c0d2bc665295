"""Config, weights and tokenizer of a checkpoint by transformers' loaders, whose errors become one message."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

import spikesink
from spikesink.access.checkpoint import Checkpoint
from spikesink.access.quantised import dequantising, made_plain, quantisation_method, refused
from spikesink.access.stored import check_config_keys, check_loaded, check_tied
from spikesink.errors import ModelError, SpikesinkError, UnsupportedModelError, short
from spikesink.limits import panics_raised


def read_config(checkpoint: Checkpoint, trust_remote_code: bool) -> Any:
    """The checkpoint's config, nothing of which would be ignored."""
    with explained(checkpoint, trust_remote_code):
        stored, _ = PreTrainedConfig.get_config_dict(checkpoint.source, **checkpoint.at_revision)
        part = spikesink.REGISTERING.get(str(stored.get("model_type")))
        if part is not None:
            import_module(part)
        config = AutoConfig.from_pretrained(
            checkpoint.source, trust_remote_code=trust_remote_code, **checkpoint.at_revision
        )
        text = config.get_text_config(decoder=True)
    check_config_keys(checkpoint.name, config, text, stored)
    # Which attention it was saved with does not matter: ours is measured, and eager's is what it is held against.
    for part in (config, text):
        part._attn_implementation = None
    return config


def refuse_unsuitable(config: Any, name: str) -> None:
    """Raise UnsupportedModelError for what is no decoder-only language model."""
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"'{name}' is an encoder-decoder model ({config.model_type}); decoder-only expected."
        )
    remote = bool(getattr(config, "auto_map", None))
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not remote:
        if hasattr(config, "text_config"):
            raise UnsupportedModelError(
                f"'{name}' is a multimodal model ({config.model_type}) whose text decoder transformers "
                f"{transformers.__version__} does not load by itself. Give a checkpoint of the text decoder."
            )
        raise UnsupportedModelError(
            f"'{name}' has model type '{config.model_type}', which is no causal language model in transformers "
            f"{transformers.__version__}."
        )
    encoder = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
    if encoder:
        raise UnsupportedModelError(f"'{name}' is an encoder-only model ({config.model_type}); decoder-only expected.")


def read_model(
    checkpoint: Checkpoint,
    config: Any,
    dtype: torch.dtype | str,
    *,
    device: str,
    trust_remote_code: bool,
    allow_pickle: bool,
) -> PreTrainedModel:
    """The model with its weights, none of which is missing or left over, de-quantised, ready to be run."""
    method = quantisation_method(config)
    options: dict[str, Any] = {**checkpoint.at_revision, **dequantising(config, checkpoint.name, device)}
    if device == "auto":
        options["device_map"] = "auto"
    # Before the loader takes what it needs out of it.
    said = config.to_dict()
    with explained(checkpoint, trust_remote_code):
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                checkpoint.source,
                config=config,
                dtype=dtype,
                use_safetensors=None if allow_pickle else True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                # Weights of another shape are refused below, by name.
                ignore_mismatched_sizes=True,
                **options,
            )
        except (ImportError, NotImplementedError, ValueError) as error:
            if method is None:
                raise
            raise refused(checkpoint.name, method, error) from error
        model, info = loaded
        if "device_map" not in options:
            model = model.to(device)
    check_loaded(f"The checkpoint '{checkpoint.name}'", info, said)
    check_tied(checkpoint.name, model)
    if method is not None:
        model = made_plain(model, checkpoint.name, method, dtype)
    return model.eval()


def read_tokenizer(checkpoint: Checkpoint, trust_remote_code: bool) -> tuple[Any | None, str | None]:
    """The checkpoint's tokenizer, or None and why: a scan of given ids needs none, any other asks for it then."""
    try:
        with panics_raised():
            tokenizer = AutoTokenizer.from_pretrained(
                checkpoint.source, trust_remote_code=trust_remote_code, **checkpoint.at_revision
            )
        # Without its files, many a tokenizer class comes up with its special tokens alone; text would be all unknown.
        made_up = len(tokenizer) <= len(tokenizer.all_special_tokens)
    except Exception as error:
        return None, f"{type(error).__name__}: {short(error)}"
    return (None, "its vocabulary is not there") if made_up else (tokenizer, None)


@contextmanager
def explained(checkpoint: Checkpoint, trust_remote_code: bool) -> Iterator[None]:
    """Raise what a loader raises as one message with what to do."""
    try:
        yield
    except SpikesinkError:
        raise
    except Exception as error:
        raise _explain(checkpoint, error, trust_remote_code) from error


def _explain(checkpoint: Checkpoint, error: Exception, trust_remote_code: bool) -> SpikesinkError:
    """The loader's error as one message with what to do."""
    text = " ".join(str(error).split())
    name = checkpoint.name
    if "trust_remote_code" in text and not trust_remote_code:
        return ModelError(f"'{name}' needs its own code to load; read it, then pass --trust-remote-code.")
    if "out of memory" in text or "can't allocate memory" in text:
        return ModelError(f"Not enough memory to load '{name}'. Try --dtype bfloat16 or a machine with more.")
    if "safetensors" in type(error).__module__ or "SafetensorError" in type(error).__name__:
        return ModelError(
            f"The weights of '{name}' cannot be read ({text}): truncated or corrupt; download them again."
        )
    if "does not appear to have a file named model.safetensors" in text:
        return ModelError(
            f"'{name}' has no safetensors weights, but perhaps pickle weights, which can run code when read. Convert "
            "them, or pass --allow-pickle if you trust their source."
        )
    if not checkpoint.local and ("connect" in text or "offline" in text.lower() or "hub" in text.lower()):
        return ModelError(
            f"'{name}' is not a local folder or file, and the hub did not give it: {text[:300]} "
            "Check the name and the network, give the path of a local checkpoint, or name no model for the embedded "
            "SmolLM2."
        )
    return ModelError(f"'{name}' cannot be loaded: {type(error).__name__}: {text[:400]}")
