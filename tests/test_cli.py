"""The command line: results on stdout, messages on stderr, exit codes."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import altclip_fast as af
from altclip_fast import cli
from altclip_fast.testing.embeddings import FLOAT32


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return stop.value.code or 0, captured.out, captured.err


def test_classify(capsys, altclip_folder, photo_paths):
    code, out, err = run(capsys, "classify", *photo_paths, "--labels", "cat", "two dogs", "--model", altclip_folder)
    lines = out.splitlines()
    assert code == 0 and err == ""
    assert [lines[0], lines[3]] == [str(path) for path in photo_paths]
    expected = af.load(altclip_folder).classifier(["cat", "two dogs"])(photo_paths)
    assert lines[1:3] == [f"  {pair['score']:.4f}  {pair['label']}" for pair in expected[0]]


def test_classify_json(capsys, altclip_folder, photo_paths):
    code, out, _ = run(
        capsys,
        "classify",
        photo_paths[0],
        "--labels",
        "猫",
        "b",
        "c",
        "--model",
        altclip_folder,
        "--json",
        "--top",
        "2",
        "--template",
        "{}",
    )
    (row,) = json.loads(out)
    assert code == 0 and row["image"] == str(photo_paths[0]) and len(row["labels"]) == 2
    assert row["labels"] == af.load(altclip_folder).classifier(["猫", "b", "c"], "{}")(photo_paths[0])[0][:2]


def test_quantization(capsys, photo_paths):
    code, out, _ = run(capsys, "embed", photo_paths[0], "--quantization", "int8", "--device", "cpu")
    expected = af.load("embedded", device="cpu", quantization="int8").encode_image(photo_paths[0])
    assert code == 0 and json.loads(out)["embedding"] == pytest.approx(expected[0].tolist())


def test_a_bad_file_is_reported_and_the_others_go_on(capsys, altclip_folder, photo_paths, tmp_path):
    bad = tmp_path / "notes.txt"
    bad.write_text("no image")
    code, out, err = run(capsys, "classify", bad, photo_paths[0], "--labels", "a", "b", "--model", altclip_folder)
    assert code == 1 and "notes.txt" in err and "notes.txt" not in out and str(photo_paths[0]) in out
    code, out, _ = run(capsys, "classify", bad, "--labels", "a", "--model", altclip_folder, "--json")
    assert code == 1 and "error" in json.loads(out)[0]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["classify"],
        ["classify", "a.jpg"],
        ["nonsense"],
        ["classify", "a.jpg", "--labels", "a", "--model", "m", "--batch-size", "0"],
        ["classify", "a.jpg", "--labels", "a", "--model", "m", "--dtype", "int7"],
        ["classify", "a.jpg", "--labels", "a", "--model", "m", "--frobnicate"],
        ["classify", "a.jpg", "--labels", "a", "--model", "m", "--template", "x"],
        ["embed", "--model", "m"],
        ["search", "index.npy", "--model", "m"],
    ],
)
def test_wrong_usage(capsys, arguments):
    code, out, err = run(capsys, *arguments)
    assert code == 2 and out == "" and "usage" in err


def test_failed_job(capsys, tmp_path, altclip_folder):
    code, out, err = run(capsys, "classify", "a.jpg", "--labels", "a", "--model", tmp_path)
    assert code == 1 and out == "" and "config.json" in err


def test_a_package_that_is_not_installed(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "index.parquet").touch()
    code, out, err = run(capsys, "search", tmp_path / "index.parquet", "--text", "a", "--model", "embedded")
    assert code == 1 and out == "" and "altclip_fast[search]" in err and "Traceback" not in err


def test_embed(capsys, altclip_folder, photo_paths, tmp_path):
    target = tmp_path / "embeddings.npy"
    code, out, _ = run(capsys, "embed", *photo_paths, "--text", "a cat", "--model", altclip_folder, "--output", target)
    encoder = af.load(altclip_folder)
    expected = torch.cat([encoder.encode_image(photo_paths), encoder.encode_text("a cat")])
    assert code == 0 and "3 x 20" in out
    assert torch.equal(torch.from_numpy(np.load(target)), expected)
    code, out, _ = run(capsys, "embed", "--text", "a cat", "猫", "--model", altclip_folder)
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["input"] for line in lines] == ["a cat", "猫"]
    assert (torch.tensor(lines[0]["embedding"]) - expected[2]).abs().max() <= FLOAT32


def test_embed_writes_nothing_when_it_fails(capsys, altclip_folder, tmp_path):
    target = tmp_path / "embeddings.npy"
    code, _, err = run(capsys, "embed", "absent.jpg", "--model", altclip_folder, "--output", target)
    assert code == 1 and "absent.jpg" in err and list(tmp_path.iterdir()) == []


def test_where_embeddings_cannot_be_written_nothing_is_computed(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "_load", lambda options: pytest.fail("the model was loaded"))
    for target in (tmp_path, tmp_path / "absent" / "embeddings.npy"):
        code, _, err = run(capsys, "embed", "a.jpg", "--output", target)
        assert code == 1 and f"{target} cannot be written" in err


def test_doctor(capsys):
    code, out, _ = run(capsys, "doctor")
    assert code == 0 and af.__version__ in out and "attention" in out
    code, out, _ = run(capsys, "doctor", "--json")
    report = json.loads(out)
    assert {row["op"] for row in report["operators"]} >= {"layer_norm", "linear", "attention"}
    assert report["facts"]["altclip_fast"] == af.__version__


def test_as_a_module(altclip_folder, photo_paths):
    command = [
        sys.executable,
        "-m",
        "altclip_fast",
        "classify",
        str(photo_paths[0]),
        "--labels",
        "a",
        "b",
        "--model",
        str(altclip_folder),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(photo_paths[0])) and done.stderr == ""
