"""`python -m benchmarks`: `kernels` as the compiler sees them; `similarity` against its peers."""

from __future__ import annotations

import argparse

from . import kernels, similarity


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in (kernels, similarity):
        module.add_command(commands)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
