"""The command line: results on stdout, messages on stderr; exit code 2 for wrong usage, 1 for a failed job."""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._version import __version__
from .files import staged

if TYPE_CHECKING:
    from .encoder import Encoder


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `altclip-fast`; ends the process with its exit code."""
    warnings.showwarning = _show_warning
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        code = options.run(options)
    except argparse.ArgumentError as error:  # what no option alone can tell
        parser.error(f"{options.command}: {error}")
    except (ValueError, TypeError, OSError, ImportError) as error:
        message = str(error).removeprefix(f"{options.command}: ")
        print(f"altclip-fast {options.command}: {message}", file=sys.stderr)
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

    embed = commands.add_parser("embed", help="embed photos and texts", description="Embed photos and texts.")
    embed.add_argument("images", nargs="*", metavar="IMAGE", help="image files")
    embed.add_argument("--text", nargs="+", default=[], metavar="TEXT", help="texts, which come after the images")
    embed.add_argument("--output", metavar="FILE.npy", help="write float32 [N, D] there; else JSON lines to stdout")
    _add_model_options(embed)
    embed.set_defaults(run=_embed)

    search = commands.add_parser(
        "search",
        help="find the rows of an index that fit texts or photos best",
        description="Find the rows of an index of embeddings that fit texts or photos best.",
    )
    search.add_argument("index", metavar="INDEX", help="a .npy, .safetensors or .parquet file of embeddings [M, D]")
    search.add_argument("--text", nargs="+", default=[], metavar="TEXT", help="what to search for")
    search.add_argument("--image", nargs="+", default=[], metavar="IMAGE", help="image files to search for")
    search.add_argument("--name", help="of the tensor or the column, where the file holds several")
    search.add_argument("--top", type=_positive, default=10, metavar="N", help="rows for each query (default: 10)")
    search.add_argument("--check-finite", action="store_true", help="refuse an index with NaN or infinity")
    _add_model_options(search)
    search.add_argument("--json", action="store_true", help="write JSON, one list entry a query")
    search.set_defaults(run=_search)

    demo = commands.add_parser(
        "demo",
        help="show the model that the package carries at work",
        description="Classify fresh drawings and held-out digits in several languages, and search among drawings.",
    )
    demo.add_argument("--model", default="embedded", help="or a folder that altclip_fast.embedded.train wrote")
    demo.add_argument("--seed", type=_natural, metavar="N", help="of the drawings (default: a new one each time)")
    demo.add_argument("--output", default="altclip-fast-demo.png", metavar="FILE.png", help="the picture to write")
    demo.add_argument("--query", default="a big red star on a white background", help="what to search for")
    demo.add_argument("--evaluate", action="store_true", help="measure accuracies in every language instead")
    demo.set_defaults(run=_demo)

    bench = commands.add_parser(
        "bench",
        help="measure this machine: this library beside what else is installed",
        description="Measure AltCLIP's towers at real size beside those of transformers, torch.compile, ONNX Runtime, "
        "OpenVINO and torchao, whichever are installed. It takes up to an hour, and 12 GB of disk for random weights; "
        "--quick takes less than two minutes.",
    )
    bench.add_argument(
        "--quick", action="store_true", help="an image tower of full width and 4 layers, under 2 minutes"
    )
    bench.add_argument("--threads", type=_positive, metavar="N", help="default: what torch takes")
    bench.add_argument("--json", action="store_true", help="write every measurement as a line of JSON")
    bench.set_defaults(run=_bench)

    doctor = commands.add_parser(
        "doctor",
        help="tell what is installed and which backends run",
        description="Tell what is installed and which backends run.",
    )
    doctor.add_argument("--json", action="store_true", help="write JSON")
    doctor.set_defaults(run=_doctor)
    return parser


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        help="a folder in the hub's layout, or a hub id (default: embedded, which knows drawn shapes and digits only)",
    )
    parser.add_argument("--revision", help="of a hub id")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU where there is one)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: as stored")
    parser.add_argument("--quantization", choices=("int8",), help="8-bit numbers in the encoders' layers, on the CPU")
    parser.add_argument("--batch-size", type=_positive, default=32, metavar="N")


def _load(options: argparse.Namespace) -> Encoder:
    from .encoder import load

    if options.model is None:
        print(
            f"altclip-fast {options.command}: this is the embedded model, which knows drawn shapes and digits only; "
            "--model takes another",
            file=sys.stderr,
        )
    return load(
        options.model or "embedded",
        device=options.device,
        dtype=options.dtype,
        quantization=options.quantization,
        revision=options.revision,
    )


def _classify(options: argparse.Namespace) -> int:
    from .encoder import fill_template

    try:
        fill_template(options.template, "")
    except ValueError as error:
        raise argparse.ArgumentError(None, str(error)) from error
    encoder = _load(options)
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


def _embed(options: argparse.Namespace) -> int:
    import numpy as np
    import torch

    inputs = [*options.images, *options.text]
    if not inputs:
        raise argparse.ArgumentError(None, "nothing to embed; give image files, or --text")
    target = None if options.output is None else Path(options.output)
    if target is not None and (target.is_dir() or not target.parent.is_dir()):
        raise OSError(f"{options.output} cannot be written: it is a folder, or in none that exists")
    encoder = _load(options)
    rows = torch.cat(
        [
            encoder.encode_image(options.images, batch_size=options.batch_size),
            encoder.encode_text(options.text, batch_size=options.batch_size),
        ]
    )
    if target is None:
        for name, row in zip(inputs, rows, strict=True):
            print(json.dumps({"input": name, "embedding": row.tolist()}, ensure_ascii=False))
    else:
        with staged(target.parent) as path, open(path(target.name), "wb") as file:
            np.save(file, rows.numpy())
        print(f"{options.output}: {len(rows)} x {encoder.embedding_dim}")
    return 0


def _search(options: argparse.Namespace) -> int:
    import torch

    from .retrieval import check_file, search

    inputs = [*options.text, *options.image]
    if not inputs:
        raise argparse.ArgumentError(None, "nothing to search for; give --text or --image")
    check_file(options.index)
    encoder = _load(options)
    queries = torch.cat(
        [
            encoder.encode_text(options.text, batch_size=options.batch_size),
            encoder.encode_image(options.image, batch_size=options.batch_size),
        ]
    )
    found = search(options.index, queries, options.top, name=options.name, check_finite=options.check_finite)
    rows = [
        {"query": query, "rows": [{"row": row, "score": score} for row, score in zip(indices, scores, strict=True)]}
        for query, indices, scores in zip(inputs, found.indices.tolist(), found.scores.tolist(), strict=True)
    ]
    if options.json:
        print(json.dumps(rows, ensure_ascii=False, indent=2))
        return 0
    for query in rows:
        print(query["query"])
        for hit in query["rows"]:
            print(f"  {hit['score']:.4f}  {hit['row']}")
    return 0


def _demo(options: argparse.Namespace) -> int:
    from .embedded import demo, evaluate
    from .encoder import load

    encoder = load(options.model)
    if options.evaluate:
        print(evaluate.evaluate(encoder))
        return 0
    seed = secrets.randbelow(10**6) if options.seed is None else options.seed
    found, hits = demo.examples(encoder, seed), demo.search(encoder, options.query, seed)
    demo.save(demo.as_picture(found, options.query, hits), options.output)
    print(demo.as_text(found, options.query, hits))
    print(f"\nseed {seed}; picture: {options.output}")
    return 0


def _bench(options: argparse.Namespace) -> int:
    from .benchmarks import quick

    return quick.run(options.quick, options.threads, options.json)


def _doctor(options: argparse.Namespace) -> int:
    from . import doctor

    print(json.dumps(doctor.report(), indent=2) if options.json else doctor.text())
    return 0


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return int(text)


def _natural(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 on")
    return int(text)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    print(f"altclip-fast: {message}", file=sys.stderr)
