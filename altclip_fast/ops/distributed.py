"""The contrastive loss of a batch whose rows lie on several processes.

Each process holds some texts and the images that belong to them. Images go round in chunks, so that none holds more
than its own rows, one chunk, and two numbers for every row of the batch; each process meets its texts with all images,
and the sums over texts are merged in the end. Cheng et al., Inf-CL (arXiv 2410.17243).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .contrastive import before_normalizing, contrastive_gradients, contrastive_loss, contrastive_sums, entropy

CHUNK = 8192  # images that are sent at once


def distributed_contrastive_loss(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    normalize: bool = True,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """`contrastive_loss` of all rows of all processes of a group; every process calls it.

    Args:
        image, text: [n, D], the rows of this process, n >= 1; n may differ between processes. One device, one dtype.
        logit_scale, normalize: as in `contrastive_loss`; the same on every process.
        group: the processes; None is all of them.

    Returns:
        A scalar, the loss of the whole batch, the same on every process. The gradients of image and text are those of
        the whole batch; that of logit_scale is this process' share, and the shares add up to the whole. So under
        DistributedDataParallel, which averages gradients, multiply the loss by the number of processes.

    Raises:
        ValueError, TypeError: as `contrastive_loss`; torch.distributed is not initialised.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError("distributed_contrastive_loss: call torch.distributed.init_process_group first")
    if contrastive_loss.check is not None:
        contrastive_loss.check(image, text, logit_scale, normalize)
    return _Loss.apply(image, text, logit_scale, normalize, group)


class _Chunk(NamedTuple):
    """Some images of one process, on every process."""

    owner: int  # rank in the group
    mine: bool
    start: int  # among the owner's images
    first: int  # in the batch
    images: Tensor


class _Batch:
    """Who holds which rows."""

    def __init__(self, image: Tensor, group: dist.ProcessGroup | None) -> None:
        self.group, self.rank = group, dist.get_rank(group)
        counts = [image.new_zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size(group))]
        dist.all_gather(counts, torch.full_like(counts[0], len(image)), group=group)
        self.counts = [int(count) for count in counts]
        self.rows = sum(self.counts)
        self.start = sum(self.counts[: self.rank])

    def source(self, owner: int) -> int:
        return owner if self.group is None else dist.get_global_rank(self.group, owner)

    def chunks(self, image: Tensor) -> Iterator[_Chunk]:
        first = 0
        for owner, count in enumerate(self.counts):
            for start in range(0, count, CHUNK):
                mine, size = owner == self.rank, min(CHUNK, count - start)
                images = image[start : start + size].contiguous() if mine else image.new_empty(size, image.shape[1])
                dist.broadcast(images, self.source(owner), group=self.group)
                yield _Chunk(owner, mine, start, first, images)
                first += size

    def add_up(self, x: Tensor) -> Tensor:
        dist.all_reduce(x, group=self.group)
        return x

    def merge(self, sums: Tensor) -> Tensor:
        """The sums [2, n] over what all processes have seen."""
        most = sums[0].clone()
        dist.all_reduce(most, dist.ReduceOp.MAX, group=self.group)
        return torch.stack([most, self.add_up(sums[1] * (sums[0] - most).exp2())])


def _merge(a: Tensor, b: Tensor) -> Tensor:
    most = torch.maximum(a[0], b[0])
    return torch.stack([most, a[1] * (a[0] - most).exp2() + b[1] * (b[0] - most).exp2()])


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, image: Tensor, text: Tensor, logit_scale: Tensor, normalize: bool, group: dist.ProcessGroup | None
    ) -> Tensor:
        batch, scale = _Batch(image, group), logit_scale.double().exp().item()
        rows = torch.full((2, len(text)), -math.inf, device=text.device)
        rows[1] = 0
        match, parts = torch.empty_like(rows[0]), []
        for chunk in batch.chunks(image):
            some_rows, part, pairs = contrastive_sums(text, chunk.images, scale, normalize, batch.start - chunk.first)
            rows = _merge(rows, some_rows)
            parts.append(part)
            if chunk.mine:
                some = slice(chunk.start, chunk.start + len(chunk.images))
                match[some] = pairs[some]
        columns = batch.merge(torch.cat(parts, 1))
        own = columns[:, batch.start : batch.start + len(text)]
        total = batch.add_up(entropy(rows, match).double().sum() + entropy(own, match).double().sum())
        ctx.save_for_backward(image, text, logit_scale, rows, columns)
        ctx.batch, ctx.scale, ctx.normalize = batch, scale, normalize
        return (total / (2 * batch.rows)).to(image.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        image, text, logit_scale, rows, columns = ctx.saved_tensors
        batch, scale, normalize = ctx.batch, ctx.scale, ctx.normalize
        share = grads[0].float().item() / (2 * batch.rows)
        for_text = torch.zeros(text.shape, device=text.device)
        for_image, for_scale = torch.empty_like(for_text), for_text.new_zeros(1)
        for chunk in batch.chunks(image):
            some = columns[:, chunk.first : chunk.first + len(chunk.images)].contiguous()
            text_part, image_part, scale_part = contrastive_gradients(
                text, chunk.images, rows, some, scale, normalize, batch.start - chunk.first
            )
            for_text += text_part
            for_scale += scale_part
            dist.reduce(image_part, batch.source(chunk.owner), group=batch.group)
            if chunk.mine:
                for_image[chunk.start : chunk.start + len(image_part)] = image_part
        return (
            before_normalizing(image, for_image.mul_(share * scale), normalize),
            before_normalizing(text, for_text.mul_(share * scale), normalize),
            for_scale.mul_(share * math.log(2)).to(logit_scale.dtype).reshape(logit_scale.shape),
            None,
            None,
        )
