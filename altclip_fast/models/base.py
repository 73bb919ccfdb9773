"""What every public model class can do: be built, loaded, saved, inspected, and prepared for training."""

from __future__ import annotations

import os
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from .. import checkpoint, native
from ..config import CONFIG_NAME, Config, read_json
from ..config_rules import parse_dtype
from ..hub import resolve_file
from ..notices import warn_once
from ..quantization import STORED, check_quantization, is_quantized, quantize, stored_quantization

ATTENTION = (None, "sdpa", "eager", "altclip_fast")


class Model(nn.Module):
    """Base of the model classes.

    Args:
        config: an instance of `config_class`.

    Raises:
        TypeError: it is something else.
    """

    config_class: ClassVar[type[Config]]
    main_input_name: ClassVar[str] = "input_ids"
    new_parameters: ClassVar[frozenset[str]] = frozenset()  # may be absent from a checkpoint of another class
    _checkpoint_options: dict[str, Any] | None = None

    def __init__(self, config: Config) -> None:
        if not isinstance(config, self.config_class):
            raise TypeError(
                f"{type(self).__name__} takes a {self.config_class.__name__}, not a {type(config).__name__}"
            )
        super().__init__()
        self.config = config
        self._register_load_state_dict_pre_hook(checkpoint.rename_hook, with_module=True)

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo: str | os.PathLike[str],
        *,
        config: Config | None = None,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | int | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        quantization: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device_map: Any = None,
        attn_implementation: str | None = None,
        quantization_config: Any = None,
        **config_values: Any,
    ) -> Self:
        """Load a folder in the hub's layout, or a hub id. The model is in evaluation mode.

        Args:
            path_or_repo: a folder with `config.json` and `model.safetensors` (or a sharded or `.bin` form), or a
                hub id. A single tower is taken out of a whole checkpoint.
            config: instead of the folder's `config.json`.
            dtype: of the parameters; None or "auto" keeps the stored one. `torch_dtype` is its older name.
            device: of the parameters; None is the CPU. `device_map` may name one device, too.
            revision, local_files_only, cache_dir, token: for a hub id, as in huggingface_hub.
            attn_implementation: "sdpa", "eager" or "altclip_fast"; the numbers and the outputs are the same.
            quantization: "int8" computes the linears of the layers with 8-bit numbers, on the CPU, for inference.
            quantization_config: None; transformers' objects are not supported.
            config_values: fields of the configuration to override, such as `num_labels`.

        Returns:
            The model. On the CPU its parameters are mapped from the file where the dtype is kept.

        Raises:
            OSError: a file is absent or damaged.
            ValueError: parameters are missing, unexpected, misshapen or not finite (all are named), the
                configuration is not valid, or an argument asks for what is not supported.
        """
        check_quantization(quantization)
        if quantization_config is not None:
            raise ValueError(f"quantization_config {quantization_config!r} is not supported; pass quantization='int8'")
        if attn_implementation not in ATTENTION:
            raise ValueError(f"attn_implementation is {attn_implementation!r}; choose one of {ATTENTION[1:]} or None")
        wanted = parse_dtype("dtype", dtype if dtype is not None else torch_dtype)
        target = _device(device, device_map)
        hub: dict[str, Any] = {
            "revision": revision,
            "local_files_only": local_files_only,
            "cache_dir": cache_dir,
            "token": token,
        }
        written = resolve_file(path_or_repo, CONFIG_NAME, **hub)  # may be absent where a config is given
        stored = None if written is None else stored_quantization(read_json(written))
        if config is None:
            config = cls.config_class.from_pretrained(path_or_repo, **hub, **config_values)
        elif config_values:
            raise TypeError(f"from_pretrained got config and also {', '.join(config_values)}; set them in the config")
        with torch.device("meta"):
            model = cls(config)
        if stored is not None:
            quantize(model)
        own = cls.__name__ in (config.architectures or ())
        convert = quantization is not None and stored is None
        fresh = checkpoint.load_into(
            model,
            path_or_repo,
            dtype=None if convert else wanted,
            device=target,
            new_names=frozenset() if own else cls.new_parameters,
            **hub,
        )
        if fresh:
            model.init_head(target, wanted)
            warn_once(
                f"fresh-{cls.__name__}",
                f"{os.fspath(path_or_repo)} has no {', '.join(fresh)}: "
                f"the new head of {cls.__name__} is random, and has to be trained",
            )
        if convert:
            quantize(model)  # from the stored numbers, which need not be in memory in another precision
            model.to(wanted or model.dtype)
        _tell_of_slow_precision(model)
        return model.eval()

    def init_head(self, device: torch.device | None, dtype: torch.dtype | None) -> None:
        """Give the parameters in `new_parameters` storage and initial values."""

    @classmethod
    def from_config(cls, config: Config, dtype: torch.dtype | None = None) -> Self:
        """A model with random weights, as `cls(config)`; `dtype` converts them."""
        model = cls(config)
        return model if dtype is None else model.to(dtype)

    _from_config = from_config

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, max_shard_size: str | int = "50GB", safe_serialization: bool = True
    ) -> None:
        """Write `config.json` and the weights in the hub's layout, which transformers loads.

        Args:
            folder: made if absent.
            max_shard_size: a larger model is written as several files with an index.
            safe_serialization: False writes `pytorch_model.bin`.

        Raises:
            OSError: the folder cannot be written; nothing half-done is left.
        """
        values = {
            **self.config.to_dict(),
            "architectures": [type(self).__name__],
            "dtype": str(self.dtype).removeprefix("torch."),
        }
        values.pop("quantization_config", None)
        if is_quantized(self):
            values["quantization_config"] = STORED
        checkpoint.save(self, values, folder, max_shard_size=max_shard_size, safe_serialization=safe_serialization)

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return next(p.dtype for p in self.parameters() if p.is_floating_point())

    @property
    def device(self) -> torch.device:
        """Of the parameters."""
        return next(self.parameters()).device

    def num_parameters(self, only_trainable: bool = False) -> int:
        """How many numbers the parameters hold."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not only_trainable)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """Recompute each layer in the backward pass of training, to save its activations' memory.

        Args:
            gradient_checkpointing_kwargs: for `torch.utils.checkpoint.checkpoint`; use_reentrant is False.
        """
        self._set_checkpointing(dict(gradient_checkpointing_kwargs or {}))

    def gradient_checkpointing_disable(self) -> None:
        """Keep the activations again."""
        self._set_checkpointing(None)

    @property
    def is_gradient_checkpointing(self) -> bool:
        return self._checkpoint_options is not None

    def _set_checkpointing(self, options: dict[str, Any] | None) -> None:
        for module in self.modules():
            if isinstance(module, Model):
                module._checkpoint_options = options

    def return_dict(self, asked: bool | None) -> bool:
        """A caller's `return_dict`, or the configuration's."""
        return self.config.return_dict if asked is None else asked


def _tell_of_slow_precision(model: Model) -> None:
    """Lower precision is for speed, which takes instructions that not every processor has."""
    precision = "int8" if is_quantized(model) else "bfloat16" if model.dtype is torch.bfloat16 else None
    found = native.instruction_set()
    if precision is not None and model.device.type == "cpu" and found not in (None, "avx512_bf16"):
        warn_once(
            f"slow-{precision}",
            f"{precision} runs with {found}: this processor has no AVX-512 for its products, and float32 may be faster",
        )


def normal_(tensor: Tensor, std: float) -> None:
    """Draw initial weights; nothing happens on the meta device."""
    if not tensor.is_meta:
        nn.init.normal_(tensor, std=std)


def zeros_(*tensors: Tensor) -> None:
    for tensor in tensors:
        nn.init.zeros_(tensor)


def _device(device: torch.device | str | int | None, device_map: Any) -> torch.device | None:
    if device is not None and device_map is not None:
        raise ValueError(f"device is {device!r} and device_map is {device_map!r}; give one of them")
    if isinstance(device_map, dict):
        if set(device_map) != {""}:
            raise ValueError(
                f"device_map is {device_map!r}; one device for the whole model is supported, as {{'': device}}"
            )
        device_map = device_map[""]
    if device_map == "auto":
        device_map = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = device if device is not None else device_map
    if chosen is None:
        return None
    try:
        found = torch.device(chosen)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device is {chosen!r}; a torch device such as 'cpu' or 'cuda:0' is needed") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {chosen!r}, but torch sees no CUDA device here")
    return found
