"""What each technique is worth: one row a technique, each on top of those before, speed and accuracy side by side."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from altclip_fast.dispatch import OPS, backends, use_backend
from altclip_fast.models import fused
from altclip_fast.models.joint import DualEncoder

from . import harness, models
from .clock import on_gpu
from .harness import Entry, Outcome
from .systems import OURS, SYSTEMS, Running, embedding, own_model
from .workloads import Job

PRODUCTS = frozenset({"linear", "qkv", "mlp"})
ATTENTION = PRODUCTS | {"attention"}
TOWER = ATTENTION | {"patch_embed", "text_embed", "layer_norm", "add_layer_norm"}


def add_command(commands: Any) -> None:
    """Add `ladder` to the command line."""
    parser = commands.add_parser(
        "ladder", help="what each technique is worth, one after the other", description=__doc__
    )
    models.add_run_options(parser, folders=False)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    outcome = Outcome()
    for job in models.jobs(options):
        found = harness.run(
            steps(job.work), job, models.limits(options), models.tell, kind="ladder", subject=models.subject(options)
        )
        outcome.add(found)
        models.write(found, options.output)
    print(outcome)
    return outcome.code


def steps(work: str, device: str = "cpu") -> list[Entry]:
    """The rungs for a kind of work, lowest first. A GPU begins in bfloat16, since nobody would use float32 there."""
    gpu = on_gpu(device)
    dtype = "bfloat16" if gpu else "float32"
    found: list[tuple[str, Callable[[Job], Running], str]] = [
        ("transformers, eager", SYSTEMS["transformers-eager"].start, dtype),
        ("transformers, sdpa", SYSTEMS["transformers-sdpa"].start, dtype),
        ("this library, plain torch", partial(_own, operators=frozenset(), padded=True, every_row=True), dtype),
    ]
    if work != "image":
        found.append(("+ no padding", partial(_own, operators=frozenset(), every_row=True), dtype))
    packed = "fused epilogues" if gpu else "packed weights, fused epilogues"
    found += [
        ("+ only the pooled token in the last layer", partial(_own, operators=frozenset()), dtype),
        (f"+ {packed}", partial(_own, operators=PRODUCTS), dtype),
        ("+ own attention", partial(_own, operators=ATTENTION), dtype),
    ]
    if _running(TOWER) != _running(ATTENTION):
        found.append(("+ all other kernels", partial(_own, operators=TOWER), dtype))
    if gpu:
        found.append(("+ CUDA graphs", SYSTEMS[OURS].start, dtype))
    else:
        whole = partial(_own, operators=TOWER, one_call=True)
        found += [
            ("+ all layers in one call", whole, dtype),
            ("+ bfloat16", whole, "bfloat16"),
            ("+ int8", whole, "int8"),
        ]
    return [Entry(name, start, dtype, step) for step, (name, start, dtype) in enumerate(found)]


def _own(
    job: Job, operators: frozenset[str], padded: bool = False, every_row: bool = False, one_call: bool = False
) -> Running:
    """This library, with kernels of its own for `operators` only.

    Args:
        padded: compute the padding of texts, too.
        every_row: compute every row of the last layer.
        one_call: of native code for all layers of a tower, where they can be.
    """
    model = own_model(job)
    compute = _every_row if every_row else embedding

    def embed(inputs: dict[str, Tensor]) -> Tensor:
        if padded and job.tower == "text":
            inputs = {**inputs, "attention_mask": _dense(inputs["attention_mask"], "AltCLIP" not in job.class_name)}
        with torch.inference_mode():
            return compute(model, job.tower, inputs)

    told = f"own kernels: {', '.join(_running(operators)) or 'none'}"
    return Running(embed, told, partial(kernels_for, operators, one_call))


def _every_row(model: Any, tower: str, inputs: dict[str, Tensor]) -> Tensor:
    """The same with a last layer that computes all rows, since hidden states are asked for."""
    if not isinstance(model, DualEncoder):
        return embedding(model, tower, inputs, output_hidden_states=True)
    if tower == "image":
        return model.visual_projection(model.vision_model(**inputs, output_hidden_states=True).pooler_output)
    return model.text_projection(model.text_model(**inputs, output_hidden_states=True).pooler_output)


def _dense(mask: Tensor, causal: bool) -> Tensor:
    """A mask of four dimensions, under which nothing is packed."""
    seen = mask.bool()[:, None, None, :].expand(-1, 1, mask.shape[1], -1)
    return seen.tril() if causal else seen


def _running(operators: frozenset[str]) -> list[str]:
    """Those of these operators that have a kernel here."""
    return sorted(row.op for row in backends() if row.op in operators and row.runs != "reference")


@contextmanager
def kernels_for(operators: frozenset[str], one_call: bool = False) -> Iterator[None]:
    """Inside, other ops than these run their references, and layers are called one by one unless `one_call`."""
    with ExitStack() as stack:
        if not one_call:
            stack.enter_context(mock.patch.object(fused, "_native", lambda *_: None))
        stack.enter_context(nullcontext() if operators else use_backend("reference"))
        for name in OPS.keys() - operators:
            op = OPS[name]
            stack.enter_context(mock.patch.object(op, "_order", (op._backends["reference"],)))
        yield
