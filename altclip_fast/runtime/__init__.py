"""What runs the towers of a dual encoder for inference: by CUDA graphs, or directly.

    runtime = Runtime(model)                     # graphs on a CUDA device, eager elsewhere
    runtime.warmup()                             # or when a shape comes for the second time
    with torch.inference_mode():
        embeddings = runtime.image_features(pixels)

At batch 1 a transformer on a GPU waits for the launches of its kernels. A CUDA graph launches them all at once, but for
one shape: so batches are padded to a few buckets, and large ones run in parts that fill the GPU (`buckets`). A row's
result does not depend on the others, so padding changes nothing but, in lower precision, which tiles a kernel takes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..dispatch import forced_backend
from ..models.joint import DualEncoder
from ..models.stamp import structure
from ..models.text import Tokens
from ..notices import mark_said, warn_once
from . import cuda
from .buckets import TextBucket, full_rows, image_buckets, image_parts, text_bucket, text_parts
from .graphs import Graphs, Recorder, RecordingError
from .memory import in_halves
from .packing import compute_packed, pack, text_lengths

MODES = ("graphs", "eager")
BUDGET = 2 << 30


class Key(NamedTuple):
    """What a graph is made for.

    Attributes:
        tower: "image" or "text".
        bucket: images, or a `TextBucket`.
        dtype: of the parameters.
        rest: what else decides which kernels run: the dtype of the pixels and their mean and std, torch's switches.
    """

    tower: str
    bucket: int | TextBucket
    dtype: torch.dtype
    rest: Hashable


class Runtime:
    """Runs the towers of `model`, for inference.

    Graphs run where they can: not while gradients are recorded (so call it in `torch.inference_mode()`), under
    autocast, in training mode, in a caller's own capture, or where a module has hooks, which would not see the call.
    Parameters that change are noticed; after another change of the model, as of a norm's `eps`, call `release`.

    Args:
        model: `AltCLIPModel` or `CLIPModel`.
        mode: "graphs" or "eager"; None takes graphs on a CUDA device and eager elsewhere.
        budget: bytes of GPU memory that the graphs may hold; beyond it the least recently used ones are dropped.
        recorder: stands in for CUDA graphs, in tests.

    Raises:
        ValueError: the mode is none of these, or graphs are asked for and the model is not on a CUDA device.
    """

    def __init__(
        self,
        model: DualEncoder,
        mode: str | None = None,
        *,
        budget: int = BUDGET,
        recorder: Callable[[], Recorder] | None = None,
    ) -> None:
        if mode not in (None, *MODES):
            raise ValueError(f"runtime is {mode!r}; choose 'graphs', 'eager' or None")
        if mode == "graphs" and recorder is None and model.device.type != "cuda":
            raise ValueError(f"runtime is 'graphs', but the model is on {model.device}; CUDA graphs need a CUDA device")
        self.model, self.asked, self._recorder = model, mode, recorder
        self._failure: str | None = None
        self._graphs = Graphs(self._cuda_recorder if recorder is None else recorder, budget)

    @property
    def mode(self) -> str:
        """ "graphs" or "eager": what calls do, where nothing speaks against it."""
        possible = self.model.device.type == "cuda" or self._recorder is not None
        return "graphs" if possible and self.asked != "eager" and self._failure is None else "eager"

    def image_features(
        self, pixels: Tensor, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> Tensor:
        """The projected, not normalised embeddings of images.

        Args:
            pixels: [B, channels, image_size, image_size], normalised; or with `mean` and `std`, one number a channel,
                not yet: uint8 ones are divided by 255 before that. On the model's device or, best pinned, on the host.

        Returns:
            [B, projection_dim] on the model's device. New memory, whatever runs later.

        Raises:
            ValueError, TypeError: pixels do not fit the model. OSError: CUDA was used before this process was forked.
            torch.OutOfMemoryError: not even one image fits; batches that do not fit are halved.
        """
        self._check(pixels=pixels)
        rest = (None, None) if mean is None or std is None else (tuple(mean), tuple(std))
        return in_halves(lambda a, b: self._images(pixels[a:b], *rest), len(pixels), "images", self.release)

    def text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The projected, not normalised embeddings of texts.

        Args:
            input_ids, attention_mask: [B, S] as in the model, best on the host: there they are checked and packed.

        Returns:
            [B, projection_dim] on the model's device. New memory, whatever runs later.

        Raises:
            As `image_features`.
        """
        self._check(input_ids=input_ids, **({} if attention_mask is None else {"attention_mask": attention_mask}))
        ids, mask = input_ids.cpu(), None if attention_mask is None else attention_mask.cpu()

        def run(start: int, stop: int) -> Tensor:
            part = None if mask is None else mask[start:stop]
            return self._texts(self.model.text_model.tokens(ids[start:stop], part))

        return in_halves(run, len(ids), "texts", self.release)

    def warmup(self) -> None:
        """Compile the kernels of images, and record their graphs, now. Shapes of texts are too many to foresee."""
        if self.mode != "graphs":
            return
        config, normal = self.model.config.vision_config, [0.5] * self.model.config.vision_config.num_channels
        mark_said("recording")
        with torch.inference_mode():
            for bucket in self._image_buckets():
                shape = bucket, config.num_channels, config.image_size, config.image_size
                pixels = torch.zeros(shape, dtype=torch.uint8)
                for _ in range(2):  # the second time it is recorded
                    self.image_features(pixels, normal, normal)

    def graphs(self) -> dict[Key, int]:
        """The graphs that are kept, and how often each has run."""
        return {key: graph.runs for key, graph in self._graphs.kept().items()}  # type: ignore[misc]

    def bytes(self) -> int:
        """Memory that the graphs hold."""
        return self._graphs.bytes()

    def release(self) -> None:
        """Drop all graphs, and give their memory back to torch."""
        self._graphs.release()

    def _check(self, **given: Any) -> None:
        cuda.check_fork(self.model.device)
        for name, value in given.items():
            if not isinstance(value, Tensor) or value.dim() == 0:
                raise TypeError(f"{name} must be a Tensor with a batch, not {value!r}; pass return_tensors='pt'")

    def _images(self, pixels: Tensor, mean: Any, std: Any) -> Tensor:
        def compute(x: Tensor) -> Tensor:
            return self.model.image_features(x, mean=mean, std=std)

        stamp = self._stamp(self.model.vision_model, self.model.visual_projection) if len(pixels) else None
        if stamp is None:
            return compute(pixels.to(self.model.device, non_blocking=True))
        found = []
        for start, stop, bucket in image_parts(len(pixels), self._image_buckets()):
            key = self._key("image", bucket, (pixels.dtype, mean, std))
            found.append(self._run(key, stamp, compute, pixels[start:stop], bucket, stop - start))
        return found[0] if len(found) == 1 else torch.cat(found)

    def _texts(self, tokens: Tokens) -> Tensor:
        def compute(tokens: Tokens) -> Tensor:
            return self.model.text_projection(self.model.text_model.pooled_of(tokens))

        served = tokens.rows.cu_seqlens is not None and tokens.rows.pooled_last and tokens.rows.batch > 0
        stamp = self._stamp(self.model.text_model, self.model.text_projection) if served else None
        if stamp is None:
            return compute(tokens.to(self.model.device))
        found = []
        most = full_rows(self.model.text_model.config.hidden_size, self._graphs.recorder.multiprocessors)
        lengths = text_lengths(tokens)
        for start, stop in text_parts(lengths, most):
            bucket = text_bucket(lengths[start:stop], most)
            given = pack(tokens, start, stop, bucket, pinned=self.model.device.type == "cuda")
            run = partial(compute_packed, compute, bucket, tokens)
            found.append(self._run(self._key("text", bucket), stamp, run, given, len(given), stop - start))
        return found[0] if len(found) == 1 else torch.cat(found)

    def _run(
        self, key: Key, stamp: object, compute: Callable[[Tensor], Tensor], given: Tensor, size: int, rows: int
    ) -> Tensor:
        if self.mode == "graphs":
            try:
                return self._graphs.run(key, stamp, compute, given, size, rows)
            except RecordingError as error:
                if self.asked == "graphs":
                    raise
                self._failure = str(error)
                self.release()
                warn_once("graphs-failed", f"CUDA graphs are not used from here on: recording one failed: {error}")
        return compute(given.to(self.model.device, non_blocking=True))[:rows]

    def _stamp(self, *modules: nn.Module) -> object | None:
        """Of the modules as they are now; None where graphs do not serve a call."""
        if self.mode != "graphs" or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return None
        device = self.model.device
        if self.model.training or torch.is_autocast_enabled(device.type) or cuda.is_capturing(device):
            return None
        found = [structure(module) for module in modules]
        return None if any(hooked for _, hooked in found) else [stamp for stamp, _ in found]

    def _key(self, tower: str, bucket: int | TextBucket, rest: Hashable = None) -> Key:
        switches = (
            forced_backend(),
            torch.backends.cuda.matmul.fp32_precision,
            torch.backends.cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
            torch.are_deterministic_algorithms_enabled(),
        )
        return Key(tower, bucket, self.model.dtype, (rest, switches))

    def _image_buckets(self) -> tuple[int, ...]:
        config = self.model.config.vision_config
        tokens = (config.image_size // config.patch_size) ** 2 + 1
        return image_buckets(full_rows(config.hidden_size, self._graphs.recorder.multiprocessors), tokens)

    def _cuda_recorder(self) -> Recorder:
        return cuda.CudaRecorder(self.model.device)
