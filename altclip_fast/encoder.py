"""A model and its processor in one object: photos and sentences in, embeddings and labels out."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from . import feed, ops
from .auto import AutoModel, AutoProcessor
from .feed import Failure
from .models.joint import DualEncoder
from .models.stamp import stamp
from .processing.processors import AltCLIPProcessor, CLIPProcessor
from .runtime import Runtime
from .runtime.transfer import arriving, stacked
from .workers import Workers

TEMPLATE = "This is a photo of {}."
_KEPT_LABEL_SETS = 16
Launched = TypeVar("Launched")
EMBEDDED = {
    "embedded": Path(__file__).with_name("embedded") / "altclip",
    "embedded-clip": Path(__file__).with_name("embedded") / "clip",
}


def load(
    name: str | os.PathLike[str],
    *,
    device: torch.device | str | int | None = None,
    dtype: torch.dtype | str | None = None,
    quantization: str | None = None,
    runtime: str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
) -> Encoder:
    """A checkpoint's model and processor.

    Args:
        name: a folder in the hub's layout, or a hub id; or "embedded" (AltCLIP, 11 languages) or "embedded-clip"
            (English), small models of drawn shapes and digits that the package carries.
        device: of the model; None is the first CUDA device where there is one, else the CPU.
        dtype: of the model; None keeps the stored one.
        quantization: "int8" computes the encoders' linears with 8-bit numbers, on the CPU.
        runtime: "graphs" runs the towers by CUDA graphs, "eager" without; None takes graphs on a CUDA device.
        revision, local_files_only, cache_dir, token: for a hub id, as in huggingface_hub.

    Raises:
        OSError: a file is absent or damaged. ValueError: the checkpoint does not fit, or is no AltCLIP or CLIP.
    """
    where: dict[str, Any] = {
        "revision": revision,
        "local_files_only": local_files_only,
        "cache_dir": cache_dir,
        "token": token,
    }
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    name = EMBEDDED.get(os.fspath(name), name)
    processor = AutoProcessor.from_pretrained(name, **where)
    model = AutoModel.from_pretrained(name, device=device, dtype=dtype, quantization=quantization, **where)
    return Encoder(model, processor, runtime)


class Encoder:
    """A dual encoder with its processor.

    Args:
        model: `AltCLIPModel` or `CLIPModel`.
        processor: `AltCLIPProcessor` or `CLIPProcessor`.
        runtime: "graphs", "eager" or None, see `load`.

    Raises:
        TypeError: model or processor is something else. ValueError: the runtime is, or cannot run here.
    """

    def __init__(
        self, model: DualEncoder, processor: AltCLIPProcessor | CLIPProcessor, runtime: str | None = None
    ) -> None:
        if not isinstance(model, DualEncoder):
            raise TypeError(f"model must be an AltCLIPModel or a CLIPModel, not {type(model).__name__}")
        if not isinstance(processor, AltCLIPProcessor | CLIPProcessor):
            raise TypeError(f"processor must be an AltCLIPProcessor or a CLIPProcessor, not {type(processor).__name__}")
        self.processor = processor
        self.runtime = Runtime(model.eval(), runtime)
        self._labels: OrderedDict[tuple, Tensor] = OrderedDict()

    @property
    def model(self) -> DualEncoder:
        return self.runtime.model

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def embedding_dim(self) -> int:
        """Width of the embeddings."""
        return self.model.config.projection_dim

    @property
    def max_text_length(self) -> int:
        """Tokens that a text may have, the special ones included."""
        return min(self.model.text_model.max_tokens, self.processor.tokenizer.model_max_length)

    def encode_image(
        self,
        images: Any,
        *,
        batch_size: int = 32,
        normalize_embeddings: bool = True,
        show_progress_bar: bool | None = None,
        errors: str = "raise",
    ) -> Any:
        """Embed images.

        Args:
            images: one image or many: paths, bytes, PIL images, numpy arrays, tensors.
            batch_size: images that go through the model at once.
            normalize_embeddings: give rows of length 1.
            show_progress_bar: on stderr; None shows it for several batches on a terminal.
            errors: "raise" stops at the first image that cannot be read; "skip" leaves it out and reports it.

        Returns:
            [N, embedding_dim] float32 on the CPU, in the order of the input. With errors="skip" a pair: the
            embeddings of the images that could be read, and a list of `Failure` for the others.

        Raises:
            ValueError, TypeError, OSError: an argument or an image is not valid; an image is named by its index
                and path.
        """
        _check_batching(batch_size)
        if errors not in ("raise", "skip"):
            raise ValueError(f"errors is {errors!r}; choose 'raise' or 'skip'")
        sources = as_list(images)
        failures: list[Failure] = []
        threads = feed.threads(len(sources), self.device, self.processor.image_processor)
        with torch.inference_mode(), Workers(threads) as workers:
            launched = self._image_features(workers, sources, batch_size, None if errors == "raise" else failures)
            finished = ((None, _finish(features, normalize_embeddings)) for features in launched)
            shown = _progress(finished, _batches(len(sources), batch_size), "images", show_progress_bar)
            parts = [features for _, features in arriving(shown)]
        found = torch.cat(parts) if parts else torch.empty(0, self.embedding_dim)
        return found if errors == "raise" else (found, failures)

    def _image_features(
        self, workers: Workers, sources: list[Any], batch_size: int, failures: list[Failure] | None
    ) -> Iterator[Tensor]:
        """Of each batch, as they are launched. Without a list for the failures the first one raises."""
        config = self.model.config.vision_config
        shape = config.num_channels, config.image_size, config.image_size
        prepare, normalisation = feed.preparation(self.processor.image_processor, shape)
        for pixels in feed.image_batches(workers, prepare, sources, batch_size, feed.ahead(self.device), failures):
            yield self.runtime.image_features(stacked(pixels, self.device), *normalisation)

    def encode_text(
        self,
        texts: str | Sequence[str],
        *,
        batch_size: int = 32,
        normalize_embeddings: bool = True,
        show_progress_bar: bool | None = None,
    ) -> Tensor:
        """Embed texts. Those that are longer than the model's length are cut, and a warning says how many.

        Args:
            texts: one text or many.
            batch_size: texts that go through the model at once; texts of similar length go together.
            normalize_embeddings: give rows of length 1.
            show_progress_bar: on stderr; None shows it for several batches on a terminal.

        Returns:
            [N, embedding_dim] float32 on the CPU, in the order of the input.

        Raises:
            ValueError, TypeError: an argument is not valid, or a text is no string (its index is named).
        """
        _check_batching(batch_size)
        texts = _strings("texts", texts)
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"text {i} is {text!r}; a string is needed")
        found = torch.empty(len(texts), self.embedding_dim)
        with torch.inference_mode(), Workers(int(len(texts) > feed.WINDOW * batch_size)) as workers:
            launched = self._text_features(workers, texts, batch_size)
            finished = ((chosen, _finish(features, normalize_embeddings)) for chosen, features in launched)
            shown = _progress(finished, _batches(len(texts), batch_size), "texts", show_progress_bar)
            for chosen, features in arriving(shown):
                found[chosen] = features
        return found

    def _text_features(self, workers: Workers, texts: list[str], batch_size: int) -> Iterator[tuple[list[int], Tensor]]:
        """Of each batch, as they are launched, and which texts are in it."""
        tokenizer, ahead = self.processor.tokenizer, feed.ahead(self.device)
        for chosen, ids in feed.text_batches(workers, tokenizer, self.max_text_length, texts, batch_size, ahead):
            batch = tokenizer.pad({"input_ids": ids}, return_tensors="pt")
            yield chosen, self.runtime.text_features(batch["input_ids"], batch["attention_mask"])

    def warmup(self, texts: str | Sequence[str] = ()) -> None:
        """Do now what else comes with the first calls on a GPU: compile kernels and record CUDA graphs.

        Args:
            texts: like those that will come; a graph is for about so many tokens. Images need no example.
        """
        self.runtime.warmup()
        for _ in range(2):  # a shape is recorded when it comes again
            self.encode_text(texts, show_progress_bar=False)

    def classifier(self, labels: Sequence[str], template: str | Sequence[str] = TEMPLATE) -> Classifier:
        """A zero-shot classifier. The text tower runs here, once, and never again.

        Args:
            labels: the names to choose among.
            template: a sentence with `{}` for the label; several are averaged, which is more accurate.

        Raises:
            ValueError, TypeError: there are no labels, one is no string, or a template lacks its `{}`.
        """
        labels = check_labels(labels)
        return Classifier(self, labels, self._label_embeddings(labels, _strings("template", template)))

    def _label_embeddings(self, labels: list[str], templates: list[str]) -> Tensor:
        """[labels, D], of length 1; the last few sets are kept while the weights stay as they are."""
        sentences = [fill_template(template, label) for template in templates for label in labels]
        if not sentences:
            raise ValueError("template is an empty list; at least one sentence with {} is needed")
        weights = (*self.model.text_model.parameters(), *self.model.text_projection.parameters())
        key = (tuple(sentences), len(templates), hash(stamp(weights)))
        if key not in self._labels:
            found = self.encode_text(sentences, show_progress_bar=False).view(len(templates), len(labels), -1)
            self._labels[key] = found[0] if len(templates) == 1 else ops.l2_normalize(found.mean(0))
            while len(self._labels) > _KEPT_LABEL_SETS:
                self._labels.popitem(last=False)
        self._labels.move_to_end(key)
        return self._labels[key]


class Classifier:
    """Zero-shot classification among fixed labels; made by `Encoder.classifier`.

    Attributes:
        labels: the names.
        embeddings: [labels, D], of length 1.
    """

    def __init__(self, encoder: Encoder, labels: list[str], embeddings: Tensor) -> None:
        self.encoder, self.labels, self.embeddings = encoder, labels, embeddings

    def __call__(self, images: Any, *, batch_size: int = 32) -> list[list[dict[str, Any]]]:
        """Rank the labels for each image.

        Args:
            images: as in `Encoder.encode_image`.
            batch_size: images that go through the model at once.

        Returns:
            For each image a list of {"score", "label"}, best first; the scores add up to 1.

        Raises:
            ValueError, TypeError, OSError: as `Encoder.encode_image`.
        """
        scores = self.probabilities(self.encoder.encode_image(images, batch_size=batch_size))
        return [self.rank(row) for row in scores.tolist()]

    def probabilities(self, image_embeds: Tensor) -> Tensor:
        """[N, labels] from normalised image embeddings [N, D]."""
        scale = self.encoder.model.logit_scale.detach().float().exp().item()
        return ops.similarity_softmax(image_embeds, self.embeddings, scale, normalize=False)

    def rank(self, scores: Sequence[float]) -> list[dict[str, Any]]:
        """The labels with their scores, best first."""
        pairs = sorted(zip(scores, self.labels, strict=True), key=lambda pair: -pair[0])
        return [{"score": score, "label": label} for score, label in pairs]


def as_list(images: Any) -> list[Any]:
    """One image or many, as a list: a 4-D array or tensor is a batch, other sequences are lists of images."""
    shape = getattr(images, "shape", None)
    if shape is not None:
        return list(images) if len(shape) == 4 else [images]
    if isinstance(images, Iterable) and not isinstance(images, str | bytes | bytearray | memoryview | os.PathLike):
        return list(images)
    return [images]


def check_labels(labels: Any) -> list[str]:
    """A non-empty list of strings; ValueError or TypeError otherwise."""
    if isinstance(labels, str) or not isinstance(labels, Iterable):
        raise TypeError(f"labels is {labels!r}; a list of strings is needed")
    found = list(labels)
    if not found:
        raise ValueError("labels is empty; at least one label is needed")
    for i, label in enumerate(found):
        if not isinstance(label, str):
            raise TypeError(f"label {i} is {label!r}; a string is needed")
    return found


def _strings(name: str, value: Any) -> list[Any]:
    """One string or many, as a list."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, Iterable):
        raise TypeError(f"{name} is {value!r}; a string or a list of strings is needed")
    return list(value)


def fill_template(template: str, label: str) -> str:
    """The sentence for one label. Raises TypeError or ValueError where the template is none."""
    if not isinstance(template, str):
        raise TypeError(f"template is {template!r}; a string with {{}} is needed")
    try:
        filled, marked = template.format(label), template.format("\0")
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"template is {template!r}; one {{}} for the label is allowed") from error
    if "\0" not in marked:
        raise ValueError(f"template is {template!r}; it needs {{}} where the label goes")
    return filled


def _check_batching(batch_size: int) -> None:
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size is {batch_size!r}; a positive int is needed")


def _finish(features: Tensor, normalize: bool) -> Tensor:
    features = features.float()
    return ops.l2_normalize(features) if normalize else features


def _batches(count: int, batch_size: int) -> int:
    return -(-count // batch_size)


def _progress(launched: Iterable[Launched], batches: int, unit: str, show: bool | None) -> Iterable[Launched]:
    disable = None if show is None and batches > 1 else not show
    return tqdm(launched, total=batches, desc=unit, unit="batch", disable=disable)
