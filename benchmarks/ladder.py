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

from altclip_fast.dispatch import OPS, use_backend

from . import harness, models
from .harness import Entry, Outcome
from .systems import SYSTEMS, Running, embedding, own_model
from .workloads import Job

PRODUCTS = frozenset({"linear", "mlp"})
ALL = frozenset(OPS)


def add_command(commands: Any) -> None:
    """Add `ladder` to the command line."""
    parser = commands.add_parser(
        "ladder", help="what each technique is worth, one after the other", description=__doc__
    )
    models.add_run_options(parser)
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


def steps(work: str) -> list[Entry]:
    """The rungs for a kind of work, lowest first."""
    found: list[tuple[str, Callable[[Job], Running], str]] = [
        ("transformers, eager", SYSTEMS["transformers-eager"].start, "float32"),
        ("transformers, sdpa", SYSTEMS["transformers-sdpa"].start, "float32"),
        ("this library, plain torch", partial(_own, operators=frozenset(), padded=True, every_row=True), "float32"),
    ]
    if work != "image":
        found.append(("+ no padding", partial(_own, operators=frozenset(), every_row=True), "float32"))
    found += [
        ("+ only the pooled token in the last layer", partial(_own, operators=frozenset()), "float32"),
        ("+ packed weights, fused epilogues", partial(_own, operators=PRODUCTS), "float32"),
        ("+ own attention", partial(_own, operators=PRODUCTS | {"attention"}), "float32"),
        ("+ all other kernels", partial(_own, operators=ALL), "float32"),
        ("+ bfloat16", partial(_own, operators=ALL), "bfloat16"),
        ("+ int8", partial(_own, operators=ALL), "int8"),
    ]
    return [Entry(name, start, dtype, step) for step, (name, start, dtype) in enumerate(found)]


def _own(job: Job, operators: frozenset[str], padded: bool = False, every_row: bool = False) -> Running:
    """This library, with kernels of its own for `operators` only.

    Args:
        padded: compute the padding of texts, too.
        every_row: compute every row of the last layer.
    """
    model = own_model(job)
    options = {"output_hidden_states": True} if every_row else {}

    def embed(inputs: dict[str, Tensor]) -> Tensor:
        if padded and job.tower == "text":
            visible = inputs["attention_mask"].bool()[:, None, None, :]
            length = visible.shape[-1]
            inputs = {**inputs, "attention_mask": visible.expand(-1, 1, length, length)}
        with torch.inference_mode(), kernels_for(operators):
            return embedding(model, job.tower, inputs, **options)

    return Running(embed, f"own kernels: {', '.join(sorted(_ran(operators))) or 'none'}")


def _ran(operators: frozenset[str]) -> list[str]:
    return [name for name in operators if OPS[name].backends != ("reference",)]


@contextmanager
def kernels_for(operators: frozenset[str]) -> Iterator[None]:
    """Inside, other ops than these run their references."""
    with ExitStack() as stack:
        stack.enter_context(nullcontext() if operators else use_backend("reference"))
        for name in ALL - operators:
            op = OPS[name]
            stack.enter_context(mock.patch.object(op, "_order", (op._backends["reference"],)))
        yield
