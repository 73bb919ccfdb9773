"""What runs the towers of a dual encoder for inference: directly, or by CUDA graphs.

    runtime = Runtime(model)                     # graphs on a CUDA device, eager elsewhere
    runtime.warmup()                             # or on first use
    embeddings = runtime.image_features(pixels)

At batch 1 a transformer on a GPU waits for the launches of its kernels. A CUDA graph launches them all at once, but for
one shape: so batches are padded to a few buckets, and large ones run in parts that fill the GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..models.joint import DualEncoder

MODES = ("graphs", "eager")


class Runtime:
    """Runs the towers of `model`.

    Args:
        model: `AltCLIPModel` or `CLIPModel`.
        mode: "graphs" or "eager"; None takes graphs on a CUDA device and eager elsewhere.
        budget: bytes of GPU memory that the graphs may hold; beyond it they are dropped and made again when used.

    Raises:
        ValueError: the mode is none of these, or graphs are asked for and the model is not on a CUDA device.
    """

    def __init__(self, model: DualEncoder, mode: str | None = None, *, budget: int = 2 << 30) -> None:
        if mode not in (None, *MODES):
            raise ValueError(f"runtime is {mode!r}; choose 'graphs', 'eager' or None")
        if mode == "graphs" and model.device.type != "cuda":
            raise ValueError(f"runtime is 'graphs', but the model is on {model.device}; CUDA graphs need a CUDA device")
        self.model, self.asked, self.budget = model, mode, budget

    @property
    def mode(self) -> str:
        """ "graphs" or "eager": what calls do now."""
        return "eager"

    def image_features(
        self, pixels: Tensor, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> Tensor:
        """The projected, not normalised embeddings of images.

        Args:
            pixels: [B, channels, image_size, image_size], normalised; or with `mean` and `std`, one number a channel,
                not yet: uint8 ones are divided by 255 before that. On the model's device, or in memory of the host.

        Returns:
            [B, projection_dim] on the model's device. New memory, whatever runs later.
        """
        return self.model.image_features(pixels.to(self.model.device, non_blocking=True), mean=mean, std=std)

    def text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The projected, not normalised embeddings of texts.

        Args:
            input_ids, attention_mask: [B, S] as in the model. Those that lie on the host are checked and packed there,
                so nothing waits for the device.

        Returns:
            [B, projection_dim] on the model's device.
        """
        inputs: dict[str, Any] = {"input_ids": input_ids.to(self.model.device)}
        if attention_mask is not None:
            inputs["attention_mask"] = attention_mask.to(self.model.device)
        return self.model.text_features(**inputs)

    def warmup(self) -> None:
        """Compile the kernels and make the graphs of images ahead of their first use; texts' when they come."""

    def graphs(self) -> list[tuple[str, int]]:
        """The graphs that are kept, as (what they compute and for which bucket, how often they have run)."""
        return []

    def release(self) -> None:
        """Drop all graphs, and give their memory back."""


__all__ = ["MODES", "Runtime"]
