"""Exact search among embeddings in arrays or files, without holding scores or reading a file whole.

The index goes by in chunks, which a memory map brings from the file when they are read; of each the best rows are kept.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .ops.checks import describe
from .ops.contrastive import wide_topk

CHUNK_BYTES = 256 << 20
SUFFIXES = (".npy", ".safetensors", ".parquet")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class SearchResult(NamedTuple):
    """The best rows of an index for each query, best first.

    Attributes:
        scores: [Q, k] float32; of equal scores the lower index comes first, NaN before all numbers.
        indices: [Q, k] int64, rows of the index.
    """

    scores: Tensor
    indices: Tensor


def search(
    index: Any,
    queries: Any,
    k: int = 10,
    *,
    name: str | None = None,
    normalize: bool = True,
    check_finite: bool = False,
) -> SearchResult:
    """The k rows of an index that are most similar to each query.

    Args:
        index: [M, D]; a tensor, a numpy array, or the path of a .npy, .safetensors or .parquet file, which is mapped
            or read by row groups; float32, bfloat16 or float16.
        queries: [Q, D] or [D], tensor or array, floating. They take the dtype and the device of the index; scores are
            float32 all the same.
        k: 1 to M.
        name: of the tensor in a .safetensors file or of the column in a .parquet file that holds several; else None.
        normalize: False for dot products instead of cosines, and where rows have length 1.
        check_finite: refuse NaN and infinity.

    Raises:
        ValueError, TypeError: shapes, dtypes or k do not fit; a number is not finite (its row is named).
        OSError: a file is absent or damaged. ImportError: a .parquet file without pyarrow (`altclip_fast[search]`).
    """
    wanted = _tensor("queries", queries)
    wanted = wanted[None] if wanted.dim() == 1 else wanted
    if not wanted.is_floating_point() or wanted.dim() != 2:
        raise ValueError(f"search: queries is {describe(wanted)}; floating [Q, D] or [D] is needed")
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"search: k is {k!r}; a positive int is needed")
    if check_finite:
        _require_finite("queries", wanted, 0)
    found = SearchResult(torch.empty(len(wanted), 0), torch.empty(len(wanted), 0, dtype=torch.int64))
    first = 0
    for rows in _chunks(index, name, k):
        if rows.shape[1] != wanted.shape[1]:
            raise ValueError(f"search: queries have {wanted.shape[1]} columns and the index has {rows.shape[1]}")
        if check_finite:
            _require_finite("index", rows, first)
        asked = wanted.to(rows.device, rows.dtype)
        scores, indices = wide_topk(asked, rows, min(k, len(rows)), normalize)
        found = _best(found, SearchResult(scores.cpu(), indices.cpu() + first), k)
        first += len(rows)
    if k > first:
        raise ValueError(f"search: k is {k}; the index has {first} rows")
    return found


def _best(a: SearchResult, b: SearchResult, k: int) -> SearchResult:
    """Of two results, the rows of the second being later ones."""
    scores, indices = torch.cat([a.scores, b.scores], 1), torch.cat([a.indices, b.indices], 1)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    return SearchResult(scores[:, :k].contiguous(), indices.gather(1, order[:, :k]))


def _chunks(index: Any, name: str | None, fewest: int) -> Iterator[Tensor]:
    for part in _parts(index, name):
        if part.dim() != 2 or part.dtype not in DTYPES:
            raise ValueError(f"search: index is {describe(part)}; [M, D] float32, bfloat16 or float16 is needed")
        if len(part):
            yield from part.split(max(fewest, CHUNK_BYTES // max(1, part.shape[1] * part.element_size())))


def _parts(index: Any, name: str | None) -> Iterator[Tensor]:
    if not isinstance(index, str | os.PathLike):
        _refuse_name(name, "the index")
        return iter([_tensor("index", index)])
    path = check_file(index)
    readers = dict(zip(SUFFIXES, (_npy, _safetensors, _parquet), strict=True))
    return readers[path.suffix](path, name)


def check_file(path: str | os.PathLike[str]) -> Path:
    """The path of an index that is there and of a kind that `search` reads.

    Raises:
        OSError, ValueError: there is no such file, or its name ends otherwise.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"search: there is no file {str(path)!r}")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"search: {path.name!r} ends with none of {', '.join(SUFFIXES)}")
    return path


def _npy(path: Path, name: str | None) -> Iterator[Tensor]:
    import numpy as np

    _refuse_name(name, repr(path.name))
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise OSError(f"search: {path.name!r} cannot be mapped: {error}") from error
    if not isinstance(array, np.ndarray):
        raise OSError(f"search: {path.name!r} is an archive of arrays, not one")
    yield _tensor("index", array)


def _safetensors(path: Path, name: str | None) -> Iterator[Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            yield file.get_tensor(_chosen(path, name, list(file.keys())))
    except SafetensorError as error:
        raise OSError(f"search: {path.name!r} cannot be read: {error}") from error


def _parquet(path: Path, name: str | None) -> Iterator[Tensor]:
    import numpy as np

    try:
        from pyarrow import compute, parquet, types
    except ImportError as error:
        raise ImportError("search: .parquet files need pyarrow: pip install 'altclip_fast[search]'") from error
    try:
        opened = parquet.ParquetFile(path)
    except (ValueError, OSError) as error:
        raise OSError(f"search: {path.name!r} cannot be read: {error}") from error
    with opened as file:
        column = _chosen(path, name, file.schema_arrow.names)
        for group in range(file.num_row_groups):
            lists = file.read_row_group(group, columns=[column]).column(0).combine_chunks()
            kinds = types.is_list, types.is_large_list, types.is_fixed_size_list
            if not any(kind(lists.type) for kind in kinds) or not types.is_floating(lists.type.value_type):
                raise ValueError(f"search: {column!r} of {path.name!r} is {lists.type}; lists of floats are needed")
            numbers = lists.flatten()
            if lists.null_count or numbers.null_count:
                raise ValueError(f"search: row group {group} of {path.name!r} has rows without a whole embedding")
            lengths = compute.list_value_length(lists).unique().to_pylist()
            if len(lengths) > 1:
                raise ValueError(f"search: the embeddings in row group {group} of {path.name!r} are not of one length")
            yield torch.from_numpy(np.array(numbers)).reshape(len(lists), *(lengths or [0]))


def _refuse_name(name: str | None, what: str) -> None:
    if name is not None:
        raise ValueError(f"search: name is {name!r}; {what} is one array, without a name")


def _chosen(path: Path, name: str | None, names: list[str]) -> str:
    if name is None and len(names) == 1:
        return names[0]
    if name not in names:
        raise ValueError(f"search: name is {name!r}; {path.name!r} holds {', '.join(sorted(names)) or 'nothing'}")
    return name


def _tensor(what: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    if type(value).__module__.partition(".")[0] == "numpy":
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nothing writes to it
                return torch.from_numpy(value)
        except (TypeError, ValueError) as error:
            raise TypeError(f"search: {what} is an array of {value.dtype}, which torch does not take") from error
    raise TypeError(f"search: {what} must be a tensor or an array, not {type(value).__name__}")


def _require_finite(what: str, rows: Tensor, first: int) -> None:
    for start in range(0, len(rows), 4096):
        bad = ~rows[start : start + 4096].isfinite().all(1)
        if bad.any():
            row = first + start + int(bad.nonzero()[0])
            raise ValueError(f"search: row {row} of {what} holds NaN or infinity")
