"""`pipeline("zero-shot-image-classification")`, with the call and the output of transformers' pipeline."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch

from .encoder import TEMPLATE, Encoder, as_list, load
from .models.altclip import AltCLIPModel
from .models.joint import DualEncoder
from .processing.processors import AltCLIPProcessor, CLIPProcessor

TASK = "zero-shot-image-classification"


def pipeline(
    task: str = TASK,
    model: Any = None,
    *,
    image_processor: Any = None,
    tokenizer: Any = None,
    processor: Any = None,
    device: torch.device | str | int | None = None,
    dtype: torch.dtype | str | None = None,
    torch_dtype: torch.dtype | str | None = None,
    device_map: Any = None,
    batch_size: int = 32,
    revision: str | None = None,
    local_files_only: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
) -> ZeroShotImageClassification:
    """A zero-shot image classifier.

    Args:
        task: "zero-shot-image-classification".
        model: a folder, a hub id, an `Encoder`, or an `AltCLIPModel` or `CLIPModel` with its `processor`
            (or its `image_processor` and `tokenizer`).
        device: -1 or "cpu", 0 or "cuda:0", ...; `device_map` may name one device, too.
        dtype: of a model to be loaded; `torch_dtype` is its older name.
        batch_size: images that go through the model at once.
        revision, local_files_only, cache_dir, token: for a hub id.

    Raises:
        ValueError, TypeError, OSError: another task, no model, or as `load`.
    """
    if task != TASK:
        raise ValueError(f"task is {task!r}; {TASK!r} is supported")
    if device_map is not None and device is not None:
        raise ValueError(f"device is {device!r} and device_map is {device_map!r}; give one of them")
    device = device if device_map in (None, "auto") else device_map
    if device == -1:
        device = "cpu"
    if isinstance(model, str | os.PathLike):
        encoder = load(
            model,
            device=device,
            dtype=dtype if dtype is not None else torch_dtype,
            revision=revision,
            local_files_only=local_files_only,
            cache_dir=cache_dir,
            token=token,
        )
    elif isinstance(model, Encoder):
        encoder = model
    elif isinstance(model, DualEncoder):
        encoder = Encoder(
            model if device is None else model.to(device), processor or _join(model, image_processor, tokenizer)
        )
    else:
        raise TypeError(f"model is {model!r}; a folder, a hub id, an Encoder or a model of this package is needed")
    return ZeroShotImageClassification(encoder, batch_size)


def _join(model: DualEncoder, image_processor: Any, tokenizer: Any) -> Any:
    return (AltCLIPProcessor if isinstance(model, AltCLIPModel) else CLIPProcessor)(image_processor, tokenizer)


class ZeroShotImageClassification:
    """What `pipeline` gives. The embeddings of a set of labels are computed once and kept."""

    task = TASK

    def __init__(self, encoder: Encoder, batch_size: int = 32) -> None:
        self.encoder, self.batch_size = encoder, batch_size

    @property
    def model(self) -> DualEncoder:
        return self.encoder.model

    @property
    def device(self) -> torch.device:
        return self.encoder.device

    def __call__(
        self,
        image: Any = None,
        candidate_labels: Sequence[str] | None = None,
        *,
        hypothesis_template: str = TEMPLATE,
        images: Any = None,
        timeout: float | None = None,
        batch_size: int | None = None,
    ) -> Any:
        """Classify one image, or a list of them.

        Args:
            image: a path, PIL image, bytes, array or tensor, or a list of these (`images` is its older name).
            candidate_labels: the labels to choose among.
            hypothesis_template: the sentence around each label; "{}" where labels are sentences already.
            timeout: of downloads, for callers of transformers; nothing is downloaded here.
            batch_size: images that go through the model at once.

        Returns:
            For one image a list of {"score", "label"}, best first; for a list of images a list of these.

        Raises:
            ValueError, TypeError, OSError: an argument is absent or not valid, or an image cannot be read.
        """
        image = images if image is None else image
        if image is None:
            raise ValueError("no image was given; pass a path, a PIL image, bytes, an array or a list of these")
        if candidate_labels is None:
            raise ValueError("no candidate_labels were given; pass a list of strings")
        classify = self.encoder.classifier(candidate_labels, hypothesis_template)
        sources = as_list(image)
        found = classify(sources, batch_size=batch_size or self.batch_size)
        return found[0] if len(sources) == 1 and sources[0] is image else found
