"""Calls operators once, for a tool that watches the process: `python -m benchmarks.once --backend triton`.

Without an operator, all that the backend has, each on one sample, forward and backward.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from altclip_fast.dispatch import OPS, use_backend

from .ops import CASES, DTYPES, Make
from .truth import chosen


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}.once", description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--backend", required=True)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--op", choices=CASES, help="this one, at a size of the models")
    parser.add_argument("--case", default="", help="what is special about the call")
    parser.add_argument("--batch", type=int, default=1)
    options = parser.parse_args(arguments)
    with use_backend(options.backend):
        for op, args in _calls(options):
            print(op, file=sys.stderr, flush=True)
            _call(op, args)
    if options.device == "cuda":
        torch.cuda.synchronize()


def _calls(options: argparse.Namespace) -> Iterator[tuple[str, tuple]]:
    if options.op is not None:
        make = Make(DTYPES[options.dtype], options.device)
        cases = [case for case in CASES[options.op](make, options.batch) if case.name == options.case]
        yield from ((case.op, case.args) for case in cases)
        return
    for op in OPS:
        if options.backend in OPS[op].backends:
            yield op, chosen(op, options.dtype, options.device, 4)[-1]


def _call(op: str, args: tuple) -> None:
    args = tuple(a.detach().requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)
    found: Any = OPS[op](*args)
    outputs = [o for o in ([found] if isinstance(found, Tensor) else found) if o.requires_grad]
    if outputs:
        torch.autograd.backward(outputs, [torch.ones_like(o) for o in outputs])


if __name__ == "__main__":
    main()
