"""Measure `models`, `photos`, `zero-shot`, `fresh`, `ops`, `similarity`, a `ladder`; `kernels`, `roofline`, `gpu`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from . import fresh, gpu, kernels, ladder, models, ops, photos, report, roofline, similarity, tune, zero_shot


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; exit code 2 for wrong usage, 1 where something was refused or failed."""
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in (models, photos, zero_shot, fresh, ops, similarity, ladder, report, kernels, roofline, tune, gpu):
        module.add_command(commands)
    options = parser.parse_args(arguments)
    sys.exit(options.run(options))


if __name__ == "__main__":
    main()
