"""`python -m benchmarks COMMAND`."""

from __future__ import annotations

import argparse

from . import kernels, tune


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    kernels.add_command(commands)
    tune.add_command(commands)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
