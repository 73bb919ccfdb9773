"""The command line. Results go to stdout, messages and progress to stderr; exit code 2 is wrong usage, 1 a failed job."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from ._version import __version__


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `altclip-fast`; ends the process with its exit code."""
    warnings.showwarning = _show_warning
    options = _parser().parse_args(arguments)
    try:
        code = options.run(options)
    except (ValueError, TypeError, OSError) as error:
        print(f"altclip-fast {options.command}: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="altclip-fast", description="Run AltCLIP and CLIP models, fast.")
    parser.add_argument("--version", action="version", version=f"altclip-fast {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    classify = commands.add_parser("classify", help="rank labels for photos", description="Rank labels for photos.")
    classify.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    classify.add_argument("--labels", nargs="+", required=True, metavar="LABEL", help="the labels to choose among")
    classify.add_argument("--template", default="This is a photo of {}.", help="the sentence around a label")
    classify.add_argument("--top", type=_positive, metavar="N", help="show the N best labels only")
    _add_model_options(classify)
    classify.add_argument("--json", action="store_true", help="write JSON, one list entry an image")
    classify.set_defaults(run=_classify)

    doctor = commands.add_parser("doctor", help="tell what is installed and which backends run",
                                 description="Tell what is installed and which backends run.")
    doctor.add_argument("--json", action="store_true", help="write JSON")
    doctor.set_defaults(run=_doctor)
    return parser


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="a folder in the hub's layout, or a hub id")
    parser.add_argument("--revision", help="of a hub id")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU where there is one)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: as stored")
    parser.add_argument("--batch-size", type=_positive, default=32, metavar="N")


def _classify(options: argparse.Namespace) -> int:
    from .encoder import _fill, load

    _fill(options.template, "")
    encoder = load(options.model, device=options.device, dtype=options.dtype, revision=options.revision)
    classifier = encoder.classifier(options.labels, options.template)
    embeddings, failures = encoder.encode_image(options.images, batch_size=options.batch_size, errors="skip")
    failed = {failure.index: failure.error for failure in failures}
    scores = iter(classifier.probabilities(embeddings).tolist())
    rows: list[dict[str, Any]] = []
    for index, image in enumerate(options.images):
        if index in failed:
            print(f"altclip-fast classify: {image}: {failed[index]}", file=sys.stderr)
            rows.append({"image": image, "error": failed[index]})
        else:
            rows.append({"image": image, "labels": classifier.rank(next(scores))[: options.top]})
    if options.json:
        print(json.dumps(rows, ensure_ascii=False, indent=2))
    else:
        _print_ranks(rows)
    return 1 if failed else 0


def _print_ranks(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        if "labels" in row:
            print(row["image"])
            for pair in row["labels"]:
                print(f"  {pair['score']:.4f}  {pair['label']}")


def _doctor(options: argparse.Namespace) -> int:
    from . import doctor

    print(json.dumps(doctor.report(), indent=2) if options.json else doctor.text())
    return 0


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return int(text)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    print(f"altclip-fast: {message}", file=sys.stderr)
