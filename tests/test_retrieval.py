"""Search among embeddings: arrays and files of every kind, in chunks, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import altclip_fast as af
from altclip_fast import cli, retrieval

ROOT = Path(__file__).parents[1]


@pytest.fixture
def rows():
    return torch.randn(500, 24)


@pytest.fixture
def queries():
    return torch.randn(4, 24)


def plain(index, queries, k, normalize=True):
    if normalize:
        index, queries = (torch.nn.functional.normalize(x.double(), dim=-1) for x in (index, queries))
    scores, order = (queries.double() @ index.double().t()).sort(dim=1, descending=True, stable=True)
    return scores[:, :k].float(), order[:, :k]


def assert_found(found, expected):
    assert found.scores.dtype is torch.float32 and torch.equal(found.indices, expected[1])
    torch.testing.assert_close(found.scores, expected[0])


@pytest.mark.parametrize("chunk", [24 * 4 * 7, 24 * 4 * 499, 1 << 20])
@pytest.mark.parametrize("k", [1, 10, 500])
def test_chunks(rows, queries, k, chunk, monkeypatch):
    monkeypatch.setattr(retrieval, "CHUNK_BYTES", chunk)
    assert_found(af.search(rows, queries, k), plain(rows, queries, k))
    assert_found(af.search(rows.numpy(), queries.numpy(), k, normalize=False), plain(rows, queries, k, False))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_scores_are_not_rounded_to_the_dtype_of_the_index(rows, queries, dtype, monkeypatch):
    monkeypatch.setattr(retrieval, "CHUNK_BYTES", 4096)
    assert_found(af.search(rows.to(dtype), queries, 50), plain(rows.to(dtype), queries.to(dtype), 50))
    with af.use_backend("reference"):
        assert_found(af.search(rows.to(dtype), queries, 50), plain(rows.to(dtype), queries.to(dtype), 50))


def test_ties_and_one_query(monkeypatch):
    monkeypatch.setattr(retrieval, "CHUNK_BYTES", 64)
    found = af.search(torch.ones(40, 4), torch.ones(4), 20)
    assert found.indices.tolist() == [list(range(20))] and found.scores.shape == (1, 20)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_npy(rows, queries, dtype, tmp_path):
    file = tmp_path / "index.npy"
    np.save(file, rows.to(dtype).numpy())
    assert_found(af.search(file, queries, 5), plain(rows.to(dtype), queries.to(dtype), 5))
    assert_found(af.search(np.load(file, mmap_mode="r"), queries, 5), plain(rows.to(dtype), queries.to(dtype), 5))


def test_safetensors(rows, queries, tmp_path):
    file = tmp_path / "index.safetensors"
    save_file({"image": rows.bfloat16(), "text": rows.flip(0).bfloat16()}, file)
    expected = plain(rows.bfloat16(), queries.bfloat16(), 5)
    assert_found(af.search(str(file), queries, 5, name="image"), expected)
    for name in (None, "nothing"):
        with pytest.raises(ValueError, match=r"name is .*holds image, text"):
            af.search(file, queries, 5, name=name)


def test_parquet(rows, queries, tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    file = tmp_path / "index.parquet"
    column = pa.FixedSizeListArray.from_arrays(pa.array(rows.numpy().ravel()), rows.shape[1])
    parquet.write_table(pa.table({"id": range(len(rows)), "embedding": column}), file, row_group_size=77)
    assert_found(af.search(file, queries, 5, name="embedding"), plain(rows, queries, 5))


@pytest.mark.parametrize(
    "column, message",
    [
        ([[1.0, 0.0], [0.0, 1.0, 1.0, 1.0]], "not of one length"),  # six numbers would fit two rows of three
        ([[1.0, 2.0, 3.0], None], "without a whole embedding"),
        ([[1.0, None, 3.0]], "without a whole embedding"),
        ([1.0, 2.0, 3.0], "lists of floats are needed"),
        ([[1, 2, 3]], "lists of floats are needed"),
        (["text"], "lists of floats are needed"),
    ],
)
def test_parquet_columns_that_are_no_embeddings(column, message, tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    file = tmp_path / "index.parquet"
    parquet.write_table(pa.table({"embedding": column}), file)
    with pytest.raises(ValueError, match=message):
        af.search(file, torch.ones(3), 1)


def test_parquet_without_pyarrow(monkeypatch, tmp_path, queries):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "index.parquet").write_bytes(b"")
    with pytest.raises(ImportError, match=r"altclip_fast\[search\]"):
        af.search(tmp_path / "index.parquet", queries)


def test_an_empty_index(tmp_path):
    np.save(tmp_path / "index.npy", np.ones((0, 4), dtype=np.float32))
    for index in (torch.ones(0, 4), tmp_path / "index.npy"):
        with pytest.raises(ValueError, match="k is 1; the index has 0 rows"):
            af.search(index, torch.ones(4), 1)


def test_only_files_of_several_tensors_take_a_name(rows, queries, tmp_path):
    np.save(tmp_path / "index.npy", rows.numpy())
    for index in (rows, tmp_path / "index.npy"):
        with pytest.raises(ValueError, match=r"name is 'image'; .* is one array"):
            af.search(index, queries, 5, name="image")


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_check_finite(rows, queries, wrong, monkeypatch):
    monkeypatch.setattr(retrieval, "CHUNK_BYTES", 24 * 4 * 50)
    rows[271, 3] = wrong
    with pytest.raises(ValueError, match="row 271 of index holds NaN or infinity"):
        af.search(rows, queries, 5, check_finite=True)
    with pytest.raises(ValueError, match="row 1 of queries"):
        af.search(rows, torch.tensor([[1.0] * 24, [wrong] * 24]), 5, check_finite=True)
    assert af.search(rows, queries, 1).indices.tolist() == [[271]] * 4  # NaN comes first


@pytest.mark.parametrize(
    "index, queries, k, error, message",
    [
        (torch.ones(3, 4), torch.ones(2, 5), 1, ValueError, "5 columns and the index has 4"),
        (torch.ones(3, 4), torch.ones(2, 4), 4, ValueError, "k is 4; the index has 3 rows"),
        (torch.ones(3, 4), torch.ones(2, 4), 0, ValueError, "k is 0"),
        (torch.ones(3, 4), torch.ones(2, 4, 1), 1, ValueError, "queries is float32"),
        (torch.ones(3, 4).int(), torch.ones(2, 4), 1, ValueError, "index is int32"),
        (torch.ones(3, 4).double(), torch.ones(2, 4), 1, ValueError, "index is float64"),
        (torch.ones(3), torch.ones(2, 4), 1, ValueError, "index is float32"),
        ([[1.0]], torch.ones(2, 4), 1, TypeError, "index must be a tensor or an array, not list"),
        (torch.ones(3, 4), "text", 1, TypeError, "queries must be a tensor or an array, not str"),
        ("absent.npy", torch.ones(2, 4), 1, OSError, "no file 'absent.npy'"),
    ],
)
def test_what_is_refused(index, queries, k, error, message):
    with pytest.raises(error, match=message):
        af.search(index, queries, k)


@pytest.mark.parametrize("name", ["index.npy", "index.safetensors", "index.parquet", "index.txt"])
def test_damaged_files(tmp_path, queries, name):
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(b"\x93NUMPY\x01\x00 something else")
    with pytest.raises((OSError, ValueError), match=name):
        af.search(tmp_path / name, queries)


def test_an_archive_is_no_array(tmp_path, queries):
    with open(tmp_path / "index.npy", "wb") as file:
        np.savez(file, np.ones((3, 24), dtype=np.float32))
    with pytest.raises(OSError, match=r"'index\.npy' is an archive"):
        af.search(tmp_path / "index.npy", queries)


@pytest.mark.parametrize("given", ["{file!r}", "numpy.load({file!r}, mmap_mode='r')"])
def test_a_file_is_not_read_into_memory(tmp_path, given):
    """Growth of the process' own memory in MiB while 240 MB are searched."""
    file = tmp_path / "index.npy"
    np.save(file, np.ones((300_000, 200), dtype=np.float32))
    code = f"""
import numpy, threading, torch, altclip_fast as af
def own(): return int(next(x for x in open("/proc/self/status") if x.startswith("RssAnon")).split()[1]) / 1024
queries = torch.randn(8, 200)
af.search(torch.randn(600, 200), queries, 10)
before, most, done = own(), 0, False
def watch():
    global most
    while not done: most = max(most, own())
thread = threading.Thread(target=watch)
thread.start()
af.search({given.format(file=str(file))}, queries, 10)
done = True
thread.join()
print(most - before)
"""
    told = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert float(told.stdout) < 64


def test_command(capsys, altclip_folder, photo_paths, tmp_path):
    encoder, file = af.load(altclip_folder), tmp_path / "index.npy"
    index = encoder.encode_image(photo_paths)
    np.save(file, index.numpy())
    arguments = ["search", str(file), "--model", str(altclip_folder), "--top", "2"]
    arguments += ["--text", "a temple", "--image", str(photo_paths[1])]
    expected = af.search(index, torch.cat([encoder.encode_text("a temple"), index[1:]]), 2)
    with pytest.raises(SystemExit) as stop:
        cli.main([*arguments, "--json"])
    told = json.loads(capsys.readouterr().out)
    assert stop.value.code == 0 and [row["query"] for row in told] == ["a temple", str(photo_paths[1])]
    assert [[hit["row"] for hit in row["rows"]] for row in told] == expected.indices.tolist()
    assert told[1]["rows"][0]["row"] == 1
    with pytest.raises(SystemExit):
        cli.main(arguments)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a temple" and lines[1] == f"  {expected.scores[0, 0]:.4f}  {expected.indices[0, 0]}"


@pytest.mark.parametrize(
    "name, told",
    [
        ("absent.npy", "altclip-fast search: there is no file"),
        ("index.txt", "altclip-fast search: 'index.txt' ends with none of"),
        ("narrow.npy", "altclip-fast search: queries have 128 columns and the index has 7"),
        ("short.npy", "altclip-fast search: k is 10; the index has 5 rows"),
    ],
)
def test_command_with_a_wrong_index(name, told, capsys, tmp_path):
    (tmp_path / "index.txt").write_text("no index")
    np.save(tmp_path / "narrow.npy", np.ones((5, 7), np.float32))
    np.save(tmp_path / "short.npy", np.ones((5, 128), np.float32))
    with pytest.raises(SystemExit) as stop:
        cli.main(["search", str(tmp_path / name), "--model", "embedded", "--text", "a star"])
    assert stop.value.code == 1 and capsys.readouterr().err.startswith(told)
