"""Where the files of a model are: in a local folder, or on the Hugging Face hub (through its usual cache).

A name of a file never leads out of the folder it is looked up in. Failures are OSError or ValueError, and name
the folder or the repository, and the file.
"""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePosixPath
from typing import Any

_MAX_JSON_BYTES = 64 * 2**20  # the largest known tokenizer.json has 33 MB


def resolve_file(
    path_or_repo: str | os.PathLike[str],
    filename: str,
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> Path | None:
    """The local path of `filename` in a folder or in a hub repository; None where there is no such file.

    Args:
        path_or_repo: a folder, or a hub id such as `BAAI/AltCLIP`. A folder of that name comes first.
        filename: relative, with forward slashes.
        revision, cache_dir, token: of the hub; they mean nothing for a folder.
        local_files_only: look in the hub's cache, and do not go to the network.

    Raises:
        ValueError: `filename` is absolute or has `..` in it.
        OSError: `path_or_repo` is neither a folder nor a hub id; the file lies outside the folder (a link); or the hub
            or its cache cannot give an answer.
    """
    _check_filename(filename)
    source = os.path.expanduser(os.fspath(path_or_repo))
    if os.path.isdir(source):
        return _in_folder(Path(source), filename)
    if os.path.exists(source):
        raise NotADirectoryError(f"{source!r} is a file; give the folder that holds {filename}, or a hub id")
    _check_repository(source)
    return _on_hub(source, filename, revision, cache_dir, local_files_only, token)


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON object in the file `path`; ValueError where it holds something else, OSError where it is missing."""
    path = Path(path)
    if (size := path.stat().st_size) > _MAX_JSON_BYTES:
        raise ValueError(f"{path}: {size} bytes; a JSON file of at most {_MAX_JSON_BYTES} bytes is read")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a JSON {type(content).__name__}; an object is needed")
    return content


def _check_filename(filename: str) -> None:
    parts = PurePosixPath(filename).parts
    if not parts or filename.startswith("/") or ".." in parts or any(c in filename for c in "\\:\0"):
        raise ValueError(f"filename={filename!r}: a relative path inside the folder is needed, without '..'")


def _check_repository(source: str) -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(source)
    except HFValidationError as error:
        raise FileNotFoundError(
            f"{source!r} is neither an existing folder nor a hub id such as 'BAAI/AltCLIP': {error}"
        ) from error


def _in_folder(folder: Path, filename: str) -> Path | None:
    path = folder / filename
    if not path.is_file():
        return None
    roots = [folder.resolve()]
    if folder.parent.name == "snapshots":  # the hub's cache: snapshots/<commit>/<file> links to blobs/<hash>
        roots.append((folder.parent.parent / "blobs").resolve())
    if not any(path.resolve().is_relative_to(root) for root in roots):
        raise OSError(f"{path} leads out of its folder, to {path.resolve()}; it is not read")
    return path


def _on_hub(
    repo: str,
    filename: str,
    revision: str | None,
    cache_dir: str | os.PathLike[str] | None,
    local_files_only: bool,
    token: str | bool | None,
) -> Path | None:
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    cache = None if cache_dir is None else os.fspath(cache_dir)
    if local_files_only or constants.HF_HUB_OFFLINE:

        def cached(name: str) -> Path | None:
            found = try_to_load_from_cache(repo, name, cache_dir=cache, revision=revision)
            return Path(found) if isinstance(found, str) else None

        if found := cached(filename):
            return found
        if cached("config.json"):  # the repository is cached, so the file is not in it or was never asked for
            return None
        raise OSError(
            f"{repo!r} is no folder here, and {filename} of it is not in the hub's cache; "
            "download it first, or allow the network"
        )
    try:
        return Path(hf_hub_download(repo, filename, revision=revision, cache_dir=cache, token=token))
    except LocalEntryNotFoundError as error:
        raise OSError(f"{repo}: the hub cannot be reached, and {filename} is not in its cache: {error}") from error
    except EntryNotFoundError:
        return None
    except Exception as error:  # httpx and the hub's own classes, of which not all are OSError
        raise OSError(f"{repo}: cannot get {filename} from the hub: {error}") from error
