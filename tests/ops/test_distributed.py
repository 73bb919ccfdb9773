"""The contrastive loss over processes equals that of one process: two of them, with gloo."""

import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from altclip_fast import ops
from altclip_fast.dispatch import use_backend
from altclip_fast.ops import distributed
from altclip_fast.testing import parity

COUNTS = (7, 12)  # rows of each process
CHUNK = 5  # so that several chunks go round


def batch(dtype):
    generator = torch.Generator().manual_seed(3)
    image, text = (torch.randn(sum(COUNTS), 33, generator=generator).to(dtype) for _ in range(2))
    return image, text, torch.tensor(1.7, dtype=dtype)


def work(rank, port, folder, dtype, backend, normalize):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=len(COUNTS))
    distributed.CHUNK = CHUNK
    image, text, logit_scale = batch(dtype)
    mine = slice(sum(COUNTS[:rank]), sum(COUNTS[: rank + 1]))
    image, text = image[mine].requires_grad_(), text[mine].requires_grad_()
    logit_scale.requires_grad_()
    with use_backend(backend):
        loss = ops.distributed_contrastive_loss(image, text, logit_scale, normalize)
        (2 * loss).backward()
    torch.save((loss.detach(), image.grad, text.grad, logit_scale.grad), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def alone(dtype, normalize):
    """The loss and the gradients of the reference."""
    image, text, logit_scale = (x.to(dtype).requires_grad_() for x in batch(torch.float32))
    loss = ops.contrastive_loss.reference(image, text, logit_scale, normalize)
    (2 * loss).backward()
    return loss.detach(), image.grad, text.grad, logit_scale.grad


@pytest.mark.parametrize("backend, normalize", [("cpu", True), ("cpu", False), ("reference", True)])
def test_two_processes_equal_one(tmp_path, backend, normalize):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(work, (port, str(tmp_path), torch.float32, backend, normalize), nprocs=len(COUNTS))
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(len(COUNTS))]
    assert torch.equal(parts[0][0], parts[1][0])
    found = (parts[0][0], *(torch.cat([p[i] for p in parts]) for i in (1, 2)), parts[0][3] + parts[1][3])
    truths, baselines = alone(torch.float64, normalize), alone(torch.float32, normalize)
    for value, truth, baseline in zip(found, truths, baselines, strict=True):
        noise = parity.GRADIENT_FACTOR * (baseline - truth).abs().max()
        assert (value - truth).abs().max() <= noise + parity.FLOOR[value.dtype] * truth.abs().max()


def test_it_needs_a_process_group():
    image, text, logit_scale = batch(torch.float32)
    with pytest.raises(ValueError, match="init_process_group"):
        ops.distributed_contrastive_loss(image, text, logit_scale)
