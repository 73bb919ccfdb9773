"""Checkpoints: the hub's layout on disk <-> the plain parameter names of the models.

Contract:

- Loading accepts every spelling seen in the wild: `layer` and `layers`, towers nested (`text_model.`) and
  flat, a `module.` or `_orig_mod.` prefix, and our own names. A single tower is taken out of a whole
  checkpoint.
- All that is missing, unexpected or misshapen is named in one `CheckpointError` before anything is
  assigned; so are weights that are NaN or infinite.
- A tensor whose dtype is kept is mapped from the file, not copied: it takes no memory of its own until it is
  written to, and writing to it never changes the file.
- Nothing in a file is executed (safetensors, or `torch.load(weights_only=True)`), and an index cannot lead
  out of its folder.
- Saving writes the hub's layout, which transformers loads, and a file is replaced whole: a model may be
  saved over the file that it is mapped from.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .config import CONFIG_NAME, json_text, read_json
from .config_rules import parse_dtype
from .files import staged, write_text
from .hub import resolve_file

# In the order in which they are looked for.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)

# (ours, the hub's), for each kind of tower; `#` stands for the number of a layer. `weight` and `bias` follow.
_CLIP_LAYERS = (
    ("layers.#.norm1", "encoder.layers.#.layer_norm1"),
    ("layers.#.attention.query", "encoder.layers.#.self_attn.q_proj"),
    ("layers.#.attention.key", "encoder.layers.#.self_attn.k_proj"),
    ("layers.#.attention.value", "encoder.layers.#.self_attn.v_proj"),
    ("layers.#.attention.output", "encoder.layers.#.self_attn.out_proj"),
    ("layers.#.norm2", "encoder.layers.#.layer_norm2"),
    ("layers.#.mlp.fc1", "encoder.layers.#.mlp.fc1"),
    ("layers.#.mlp.fc2", "encoder.layers.#.mlp.fc2"),
)
_SPELLINGS = {
    "vision": (
        ("class_embedding", "embeddings.class_embedding"),
        ("patch_embedding", "embeddings.patch_embedding"),
        ("position_embedding", "embeddings.position_embedding"),
        ("pre_norm", "pre_layrnorm"),
        *_CLIP_LAYERS,
        ("post_norm", "post_layernorm"),
    ),
    "clip_text": (
        ("token_embedding", "embeddings.token_embedding"),
        ("position_embedding", "embeddings.position_embedding"),
        *_CLIP_LAYERS,
        ("final_norm", "final_layer_norm"),
    ),
    "xlm_roberta": (
        ("word_embedding", "roberta.embeddings.word_embeddings"),
        ("position_embedding", "roberta.embeddings.position_embeddings"),
        ("token_type_embedding", "roberta.embeddings.token_type_embeddings"),
        ("embedding_norm", "roberta.embeddings.LayerNorm"),
        ("layers.#.attention.query", "roberta.encoder.layers.#.attention.self.query"),
        ("layers.#.attention.key", "roberta.encoder.layers.#.attention.self.key"),
        ("layers.#.attention.value", "roberta.encoder.layers.#.attention.self.value"),
        ("layers.#.attention.output", "roberta.encoder.layers.#.attention.output.dense"),
        ("layers.#.norm1", "roberta.encoder.layers.#.attention.output.LayerNorm"),
        ("layers.#.mlp.fc1", "roberta.encoder.layers.#.intermediate.dense"),
        ("layers.#.mlp.fc2", "roberta.encoder.layers.#.output.dense"),
        ("layers.#.norm2", "roberta.encoder.layers.#.output.LayerNorm"),
        ("final_norm", "pre_LN"),
        ("projection", "transformation"),
    ),
}
_TO_OURS = {hub: ours for rows in _SPELLINGS.values() for ours, hub in rows}
_TO_HUB = {kind: dict(rows) for kind, rows in _SPELLINGS.items()}

_TOWERS = ("text_model", "vision_model")
_PARTS = frozenset({*_TOWERS, "text_projection", "visual_projection", "logit_scale", "classifier"})
_WRAPPER = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod)\.")  # DistributedDataParallel, torch.compile
_LAYER = re.compile(r"(?:^|(?<=\.))layers?\.([0-9]+)\.")
# Buffers of older releases, and XLM-R's pooler and language-model head, which AltCLIP does not use.
_IGNORED = re.compile(
    r"(?:^|\.)(?:embeddings\.position_ids|embeddings\.token_type_ids|roberta\.pooler\..+|lm_head\..+)$"
)
_EXACT = ".weight_scale"  # of 8-bit weights: keeps its dtype
_SHARD = re.compile(r"[\w-][\w.-]*\.(?:safetensors|bin)", re.ASCII)


class CheckpointError(ValueError):
    """A checkpoint that does not fit its model, or a damaged file.

    Attributes:
        missing: our names that the checkpoint lacks.
        unexpected: names in the checkpoint that the model has no place for.
        misshapen: our names, each with what is stored and what is needed.
        not_finite: our names of tensors with NaN or infinite numbers.
    """

    def __init__(
        self,
        message: str,
        *,
        missing: Collection[str] = (),
        unexpected: Collection[str] = (),
        misshapen: Collection[str] = (),
        not_finite: Collection[str] = (),
    ) -> None:
        self.missing, self.unexpected = list(missing), list(unexpected)
        self.misshapen, self.not_finite = list(misshapen), list(not_finite)
        named = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "misshapen": self.misshapen,
            "NaN or infinite": self.not_finite,
        }
        lines = [f"  {what}: {', '.join(names)}" for what, names in named.items() if names]
        super().__init__("\n".join([message, *lines]))


def to_plain(names: Iterable[str], expected: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """Map the names in a checkpoint to the plain names of a model.

    Args:
        names: as stored: the hub's spelling, transformers' in-memory spelling, or our own.
        expected: the names of the model's `state_dict()`.

    Returns:
        Stored name -> our name, and the stored names that have no place. What belongs to a part of a whole
        model that this model does not hold (another tower, a head), and known leftovers such as
        `position_ids`, are in neither.

    Raises:
        CheckpointError: two stored names stand for one of ours.
    """
    expected = frozenset(expected)
    held = {name.partition(".")[0] for name in expected} & _PARTS
    flat = _flat_tower(expected)
    inner = [part for part in _TOWERS if part in held]
    placed: dict[str, str] = {}
    unexpected = []
    for stored in names:
        name = _plain_name(stored)
        part, _, rest = name.partition(".")
        if name not in expected and flat == part:
            name = rest
        elif name not in expected and part not in _PARTS and len(inner) == 1:
            name = f"{inner[0]}.{name}"
        if name in expected:
            if name in placed:
                raise CheckpointError(f"{placed[name]} and {stored} are the same parameter, {name}")
            placed[name] = stored
        elif not _IGNORED.search(stored) and (part not in _PARTS or part in held or part == flat):
            unexpected.append(stored)
    return {stored: name for name, stored in placed.items()}, unexpected


def _flat_tower(names: Collection[str]) -> str | None:
    """The part of a whole model that a model with these names is, when it is a single tower."""
    if any(name.partition(".")[0] in _PARTS for name in names):
        return None
    return "vision_model" if "class_embedding" in names else "text_model"


def _plain_name(stored: str) -> str:
    """Our spelling of a stored name; a name that is in no table stays as it is."""
    name = _WRAPPER.sub("", stored)
    part, _, rest = name.partition(".")
    scope, rest = (f"{part}.", rest) if part in _TOWERS else ("", name)
    return scope + _respell(rest, _TO_OURS)


def _respell(name: str, table: Mapping[str, str]) -> str:
    layer = _LAYER.search(name)
    pattern = _LAYER.sub("layers.#.", name, count=1)
    module, _, leaf = pattern.rpartition(".")
    found = table[pattern] if pattern in table else f"{table[module]}.{leaf}" if module in table else name
    return found.replace("#", layer[1], 1) if layer else found


def to_hub(names: Collection[str]) -> dict[str, str]:
    """Our names -> the names that transformers and the hub use on disk, for the complete names of a model.

    AltCLIP as a whole has the hub's `text_model.roberta.encoder.layer.N`; its text tower alone has
    `roberta.encoder.layers.N`, the only spelling that transformers 5 reads into that class. Other single
    towers are nested in `text_model.` or `vision_model.`, which both transformers 4 and 5 read.
    """
    flat = _flat_tower(names)
    renamed = {}
    for name in names:
        part, _, rest = name.partition(".")
        if flat is None and part not in _TOWERS:
            renamed[name] = name
            continue
        scope, rest = (f"{part}.", rest) if flat is None else ("", name)
        kind = _tower_kind(names, scope)
        hub = _respell(rest, _TO_HUB[kind])
        if kind == "xlm_roberta":
            renamed[name] = scope + (hub.replace("encoder.layers.", "encoder.layer.") if scope else hub)
        else:
            renamed[name] = f"{flat or part}.{hub}"
    return renamed


def _tower_kind(names: Collection[str], scope: str) -> str:
    if f"{scope}class_embedding" in names:
        return "vision"
    return "xlm_roberta" if f"{scope}word_embedding.weight" in names else "clip_text"


def hub_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The model's parameters under the names that transformers and the hub use on disk (see `to_hub`)."""
    state = model.state_dict()
    names = to_hub(state)
    return {names[name]: tensor.detach() for name, tensor in state.items()}


def rename_hook(module: nn.Module, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
    """A `load_state_dict` pre-hook: names in the hub's or transformers' spelling become ours, in place.

    Known leftovers such as `position_ids` are dropped. Everything else stays, so that `strict` reports it.
    """
    expected = module.state_dict().keys()
    given = [key for key in state_dict if key.startswith(prefix) and key[len(prefix) :] not in expected]
    if not given:
        return
    stored = [key[len(prefix) :] for key in state_dict if key.startswith(prefix)]
    renamed, _ = to_plain(stored, expected)
    for key in given:
        name = key[len(prefix) :]
        if name in renamed:
            state_dict[prefix + renamed[name]] = state_dict.pop(key)
        elif _IGNORED.search(name):
            del state_dict[key]


class _File(Protocol):
    path: str

    def names(self) -> Collection[str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def is_floating_point(self, name: str) -> bool: ...
    def read(self, name: str) -> Tensor: ...


class _Safetensors:
    """One `.safetensors` file. The library checks the header against the file's size before it maps it."""

    def __init__(self, path: str) -> None:
        self.path = path
        with _damage_named(path):
            self._file = safe_open(path, framework="pt")
            self._slices = {name: self._file.get_slice(name) for name in self._file.offset_keys()}

    def names(self) -> Collection[str]:
        return self._slices.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._slices[name].get_shape())

    def is_floating_point(self, name: str) -> bool:
        return self._slices[name].get_dtype().startswith(("F", "BF"))

    def read(self, name: str) -> Tensor:
        with _damage_named(self.path):
            return self._file.get_tensor(name)


class _Pickle:
    """One `pytorch_model.bin`, read without running what is in it."""

    def __init__(self, path: str) -> None:
        self.path = path
        with _damage_named(path):
            with open(path, "rb") as file:
                is_zip = file.read(4) == b"PK\x03\x04"  # torch < 1.6 wrote a bare pickle: it cannot be mapped
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
        named = isinstance(found, dict) and all(type(name) is str for name in found)
        if not named or not all(isinstance(tensor, Tensor) for tensor in found.values()):
            raise CheckpointError(f"{path}: must hold a dict of name -> tensor")
        self._tensors: dict[str, Tensor] = found

    def names(self) -> Collection[str]:
        return self._tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def is_floating_point(self, name: str) -> bool:
        return self._tensors[name].is_floating_point()

    def read(self, name: str) -> Tensor:
        return self._tensors[name].detach()


@contextlib.contextmanager
def _damage_named(path: str) -> Iterator[None]:
    """Give an error from below the name of the file, and a type that callers expect."""
    try:
        yield
    except OSError as error:
        if path in str(error):
            raise
        raise OSError(f"{path}: {error}") from error
    except Exception as error:  # a damaged pickle can raise anything
        raise CheckpointError(f"{path}: cannot be read as a checkpoint: {error}") from error


class Weights(Mapping[str, Tensor]):
    """The tensors of a checkpoint by stored name. Each is read, or mapped, when it is asked for."""

    def __init__(self, files: Iterable[_File]) -> None:
        self._files: dict[str, _File] = {}
        for file in files:
            for name in file.names():
                if name in self._files:
                    raise CheckpointError(f"{name} is in {self._files[name].path} and again in {file.path}")
                self._files[name] = file

    def __getitem__(self, name: str) -> Tensor:
        return self._files[name].read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def shape(self, name: str) -> tuple[int, ...]:
        """The stored shape; nothing is read."""
        return self._files[name].shape(name)

    def is_floating_point(self, name: str) -> bool:
        """Whether the stored dtype is a floating one; nothing is read."""
        return self._files[name].is_floating_point(name)


def open_weights(
    path_or_repo: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> Weights:
    """Open the weights in a folder or hub repository: the first of `WEIGHT_FILES` that is there.

    Raises:
        OSError: no weights there, or a shard is missing.
        CheckpointError: a damaged file, or an index that is wrong or names files elsewhere.
    """
    where: dict[str, Any] = {
        "revision": revision,
        "cache_dir": cache_dir,
        "local_files_only": local_files_only,
        "token": token,
    }
    for filename in WEIGHT_FILES:
        found = resolve_file(path_or_repo, filename, **where)
        if found is None:
            continue
        path = os.fspath(found)
        kind = _Pickle if ".bin" in filename else _Safetensors
        if filename.endswith(".index.json"):
            return _open_index(path, kind, lambda shard: resolve_file(path_or_repo, shard, **where))
        return Weights([kind(path)])
    looked_for = ", ".join(WEIGHT_FILES)
    raise FileNotFoundError(f"{os.fspath(path_or_repo)}: no weights there; looked for {looked_for}")


def _open_index(index: str, kind: Callable[[str], _File], resolve: Callable[[str], os.PathLike[str] | None]) -> Weights:
    """The shards that an index names. They lie beside it; `resolve` refuses a link that leads away."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: weight_map must be an object of tensor name -> file name")
    files = []
    for shard in dict.fromkeys(map(str, weight_map.values())):
        if not _SHARD.fullmatch(shard):
            raise CheckpointError(f"{index}: {shard!r} is not the plain name of a .safetensors or .bin file")
        path = resolve(shard)
        if path is None:
            raise FileNotFoundError(f"{index}: the shard {shard} is missing")
        files.append(kind(os.fspath(path)))
    weights = Weights(files)
    absent = [name for name in weight_map if name not in weights]
    if absent:
        raise CheckpointError(f"{index}: names tensors that its shards lack", missing=absent)
    return weights


def read_state_dict(path_or_repo: str | os.PathLike[str], **where: Any) -> dict[str, Tensor]:
    """All tensors of a checkpoint by stored name, mapped. Arguments and errors as in `open_weights`."""
    return dict(open_weights(path_or_repo, **where))


def load_into(
    model: nn.Module,
    path_or_repo: str | os.PathLike[str],
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | int | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    new_names: Collection[str] = frozenset(),
    check_finite: bool = True,
) -> list[str]:
    """Give `model` the weights of a checkpoint. All or nothing: on an error the model is as it was.

    Args:
        model: usually built on the meta device; its parameters are replaced, and keep `requires_grad`.
        path_or_repo: a folder or hub id.
        revision, cache_dir, local_files_only, token: for a hub id, as in huggingface_hub.
        dtype: of floating tensors; None or "auto" keeps the stored one. Integers are never converted.
        device: None is the CPU, where tensors whose dtype is kept stay mapped from the file.
        new_names: parameters that the checkpoint may lack, such as a fresh classifier's.
        check_finite: look for NaN and infinite numbers. This reads the whole file, at the speed of memory.

    Returns:
        The names in `new_names` that the checkpoint lacks. They are as they were: initialise them.

    Raises:
        OSError: a file is absent. CheckpointError: a damaged file, or weights that do not fit the model.
    """
    target = parse_dtype("dtype", dtype)
    weights = open_weights(
        path_or_repo, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only, token=token
    )
    expected = model.state_dict()
    names, unexpected = to_plain(weights, expected.keys())
    absent = [name for name in expected.keys() - names.values()]
    misshapen = list(_misfits(weights, names, expected))
    missing = sorted(name for name in absent if name not in new_names)
    where = f"{os.fspath(path_or_repo)}: the checkpoint does not fit {type(model).__name__}"
    if missing or unexpected or misshapen:
        raise CheckpointError(where, missing=missing, unexpected=unexpected, misshapen=misshapen)

    tensors, not_finite = {}, []
    for stored, name in names.items():
        tensor = weights[stored]
        if tensor.is_floating_point():
            tensor = tensor.to(tensor.dtype if target is None or name.endswith(_EXACT) else target)
            if check_finite and not _is_finite(tensor):
                not_finite.append(name)
        tensors[name] = _aligned(tensor).to(device)
    if not_finite:
        as_dtype = "" if target is None else f", as {str(target).removeprefix('torch.')}"
        raise CheckpointError(f"{os.fspath(path_or_repo)}: damaged weights{as_dtype}", not_finite=not_finite)
    model.load_state_dict(tensors, strict=False, assign=True)
    return sorted(name for name in absent if name in new_names)


def _misfits(weights: Weights, names: Mapping[str, str], expected: Mapping[str, Tensor]) -> Iterator[str]:
    for stored, name in names.items():
        shape, needed = weights.shape(stored), tuple(expected[name].shape)
        if shape != needed:
            yield f"{name} (stored {list(shape)}, model {list(needed)})"
        elif expected[name].is_floating_point() and not weights.is_floating_point(stored):
            yield f"{name} (stored as integers, model {str(expected[name].dtype).removeprefix('torch.')})"


def _aligned(tensor: Tensor) -> Tensor:
    """Contiguous, at an address that suits its dtype: mapped data start where the header of the file ends."""
    return tensor.clone() if tensor.data_ptr() % tensor.itemsize else tensor.contiguous()


def _is_finite(tensor: Tensor) -> bool:
    """One read, no copy: a sum is finite only if all terms are. Where finite terms overflow, look at each."""
    if tensor.dtype.itemsize == 1:
        tensor = tensor.float()
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def save(
    model: nn.Module,
    config_dict: Mapping[str, Any],
    folder: str | os.PathLike[str],
    *,
    max_shard_size: int | str = "50GB",
    safe_serialization: bool = True,
) -> None:
    """Write the weights and `config.json` in the hub's layout; transformers loads them.

    All files are written under other names first and then renamed, `config.json` last. Weight files of an
    earlier save that would be loaded instead of these are removed.

    Args:
        model: not on the meta device.
        config_dict: `model.config.to_dict()`; the class of the model and its dtype are added.
        folder: made if absent.
        max_shard_size: above it several files and an index are written; bytes, or text such as "5GB".
        safe_serialization: False writes `pytorch_model.bin`.

    Raises:
        OSError: the folder cannot be written; the folder is as it was. ValueError: a bad argument.
    """
    state = _storable(model)
    pattern = "model{suffix}.safetensors" if safe_serialization else "pytorch_model{suffix}.bin"
    shards = _plan(state, pattern, max_shard_size)
    floating = [tensor.dtype for tensor in state.values() if tensor.is_floating_point()]
    config = {**config_dict, "architectures": [type(model).__name__]}
    if floating:
        config["dtype"] = str(floating[0]).removeprefix("torch.")
    text = json_text(config)
    os.makedirs(folder, exist_ok=True)
    with staged(folder) as path:
        for filename, names in shards.items():
            _write({name: state[name] for name in names}, path(filename), safe_serialization)
        if len(shards) > 1:
            write_text(path(pattern.format(suffix="") + ".index.json"), _index(state, shards))
        write_text(path(CONFIG_NAME), text)
    _remove_stale(folder, pattern, shards)


def _storable(model: nn.Module) -> dict[str, Tensor]:
    """The tensors to write, dense and contiguous; those that share memory with another are copied."""
    state: dict[str, Tensor] = {}
    seen: set[tuple[torch.device, int]] = set()
    for name, tensor in hub_state_dict(model).items():
        if tensor.is_meta:
            raise ValueError(f"{name} is on the meta device; load or initialise the model before it is saved")
        tensor = tensor.contiguous()
        storage = tensor.untyped_storage()
        key = tensor.device, storage.data_ptr()
        state[name] = tensor.clone() if key in seen or storage.nbytes() != tensor.nbytes else tensor
        seen.add(key)
    return state


def _plan(state: Mapping[str, Tensor], pattern: str, max_shard_size: int | str) -> dict[str, list[str]]:
    """File name -> the tensors in it."""
    from huggingface_hub import split_torch_state_dict_into_shards

    # On the meta device, as only sizes count here: huggingface_hub keeps tensors of one storage together.
    sizes = {name: tensor.to("meta") for name, tensor in state.items()}
    split = split_torch_state_dict_into_shards(sizes, filename_pattern=pattern, max_shard_size=max_shard_size)
    return split.filename_to_tensors


def _index(state: Mapping[str, Tensor], shards: Mapping[str, list[str]]) -> str:
    weight_map = {name: filename for filename, names in shards.items() for name in names}
    index = {"metadata": {"total_size": sum(t.nbytes for t in state.values())}, "weight_map": weight_map}
    return json.dumps(index, indent=2, sort_keys=True) + "\n"


def _write(tensors: dict[str, Tensor], path: str, safe: bool) -> None:
    try:
        if safe:
            save_file(tensors, path, metadata={"format": "pt"})
        else:
            torch.save(tensors, path)
    except (SafetensorError, RuntimeError) as error:  # what a full disk raises there
        raise OSError(f"{path}: cannot be written: {error}") from error


def _remove_stale(folder: str | os.PathLike[str], pattern: str, shards: Collection[str]) -> None:
    """Remove weights that `open_weights` would find before the new ones, and older shards of this format."""
    first = pattern.format(suffix="") + (".index.json" if len(shards) > 1 else "")
    before = WEIGHT_FILES[: WEIGHT_FILES.index(first)]
    stem, suffix = pattern.split("{suffix}")
    old_shard = re.compile(re.escape(stem) + r"(-\d{5}-of-\d{5})?" + re.escape(suffix) + r"(\.index\.json)?")
    for name in os.listdir(folder):
        if name not in shards and name != first and (name in before or old_shard.fullmatch(name)):
            os.remove(os.path.join(folder, name))
