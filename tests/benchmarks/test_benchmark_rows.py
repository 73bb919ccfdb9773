"""The schema of the rows, the tables and plots made of them, and whether those of the repository are up to date."""

import dataclasses
import json
from pathlib import Path

import pytest

from benchmarks import report, rows

ROOT = Path(__file__).resolve().parents[2]


def make_row(**values):
    run = rows.Run(
        run=values.pop("run", "r1"),
        date=values.pop("date", "2026-01-01 00:00"),
        commit="abc",
        machine=values.pop("machine", "machine"),
        device="processor",
        threads=2,
        versions={"torch": "2.13"},
    )
    times = values.pop("times", (0.4, 0.2, 0.3))
    fields = {
        "kind": "model",
        "subject": "vit-l-14",
        "work": "image",
        "system": "altclip_fast",
        "backend": "cpu",
        "dtype": "float32",
        "batch": 6,
        "shape": "6 x 3 x 224 x 224",
    }
    return rows.make(run, times, 3e9, 6e9, **{**fields, **values})


def test_numbers_of_a_row():
    row = make_row(times=(0.5, 0.2, 0.3, 0.4, 0.1))
    assert row.median == 0.3 and row.rounds == 5 and row.throughput == 20
    assert row.spread == pytest.approx(0.2)  # from 0.2 to 0.4
    assert (row.gflops, row.gbytes) == (pytest.approx(10), pytest.approx(20))
    assert make_row(times=[0.7]).spread == 0


def test_files_are_appended_to_and_read_back(tmp_path):
    path, first, second = tmp_path / "new" / "a.jsonl", make_row(), make_row(run="r2", share=0.5)
    rows.append(path, [first])
    before = path.read_bytes()
    rows.append(path, [second])
    assert path.read_bytes().startswith(before) and rows.read(path) == [first, second]


@pytest.mark.parametrize("break_it", ["no json", "a list", "missing", "unknown"])
def test_a_line_that_is_no_row_is_named(tmp_path, break_it):
    values = dataclasses.asdict(make_row())
    if break_it == "missing":
        del values["cosine"]
    if break_it == "unknown":
        values["speed"] = 1
    line = {"no json": "{", "a list": "[]"}.get(break_it, json.dumps(values))
    path = tmp_path / "a.jsonl"
    rows.append(path, [make_row()])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match=r"a\.jsonl:2"):
        rows.read(path)


def test_a_run_says_where_it_was_measured():
    first, second = rows.this_run(3), rows.this_run(3)
    assert first.run != second.run and first.threads == 3 and first.machine.endswith("-3-threads")
    assert set(first.machine) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert first.versions["torch"] and first.commit


SYSTEMS = {"altclip_fast": 0.1, "openvino": 0.2, "transformers-sdpa": 0.4, "reference": 0.05, "accelerated": 0.08}


def some_rows():
    old = [make_row(run="r1", system=name, times=[9.0]) for name in SYSTEMS]
    new = [
        make_row(run="r2", date="2026-01-02 00:00", system=name, times=[t], share=0.5) for name, t in SYSTEMS.items()
    ]
    return old + new


def test_tables_show_the_newest_run():
    (line,) = [line for line in report.tables(some_rows()).splitlines() if line.startswith("| vit-l-14")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    # Systems are in the order of the registry; what is ours is no peer.
    assert cells == ["vit-l-14", "6 image", "float32", "60", "75", "**120**", "15", "30", "2.00 x"]


def test_ratios_are_taken_within_a_run():
    alone = make_row(run="r3", date="2026-01-03 00:00", times=[0.01])
    assert "2.00 x" not in report.tables([*some_rows(), alone])


def test_ladder_table():
    found = [
        make_row(kind="ladder", step=step, system=name, times=[t], cosine=1.0, share=0.25)
        for step, (name, t) in enumerate([("plain", 0.6), ("+ packed", 0.2)])
    ]
    assert "| + packed | float32 | 30 | 3.00 x | 25% | 1.000000 |" in report.tables(found[::-1])


@pytest.mark.parametrize("work, line", [
    ("photos", "| vit-l-14 | 6 files | float32 | 20 | 30 (0.67 x) | 10 (2.00 x) |"),
    ("first", "| vit-l-14 | 6 files | float32 | 0.3 | 0.6 (0.50 x) |"),
    ("memory", "| vit-l-14 | 6 files | float32 | 3 | 6 (0.50 x) |"),
])  # fmt: skip
def test_tables_of_what_users_see(work, line):
    times = {"altclip_fast": 0.3, "the tower alone": 0.2, "transformers-sdpa": 0.6}
    found = [
        make_row(work=work, system=name, shape="6 files", times=[t], peak_memory=int(t * 10 * 2**30))
        for name, t in times.items()
    ]
    shown = report.tables(found)
    assert line in shown.splitlines() and "Inputs a second" not in shown
    old = [dataclasses.replace(row, run="r0", date="2025", throughput=1.0, median=9.0) for row in found]
    assert report.tables([*old, *found]) == shown


def test_a_stale_readme_is_found(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    found = [dataclasses.replace(row, work="text") for row in some_rows()]
    assert report.stale(found, readme, tmp_path) == [readme]
    readme.write_text(report.filled(readme.read_text(), found))
    assert report.stale(found, readme, tmp_path) == []
    assert readme.read_text().startswith("before\n") and readme.read_text().endswith(f"{report.END}\nafter\n")
    faster = [dataclasses.replace(row, throughput=2 * row.throughput) for row in found]
    assert report.stale(faster, readme, tmp_path) == [readme]


@pytest.mark.parametrize("text", ["", report.BEGIN, f"{report.END}{report.BEGIN}", f"{report.BEGIN}{report.END}" * 2])
def test_the_readme_needs_its_markers(text):
    with pytest.raises(ValueError, match="README"):
        report.filled(text, some_rows())


def test_plots_carry_the_digest_of_their_rows(tmp_path):
    pytest.importorskip("matplotlib")
    readme, found = tmp_path / "README.md", some_rows()
    readme.write_text(report.filled(f"{report.BEGIN}{report.END}", found))
    missing = [tmp_path / name for name in report.PLOTS]
    assert report.stale(found, readme, tmp_path) == missing
    report.draw(found, tmp_path)
    first = [file.read_bytes() for file in missing]
    assert report.stale(found, readme, tmp_path) == [] and all(b"altclip_fast" in text for text in first)
    report.draw(found, tmp_path)
    assert [file.read_bytes() for file in missing] == first, "the same rows give another file"
    faster = [dataclasses.replace(row, backend="other") for row in found]
    assert report.stale(faster, readme, tmp_path) == missing


def test_the_repository_is_up_to_date():
    if not (ROOT / "README.md").exists():
        pytest.skip("not a checkout")
    found = report.load(rows.RESULTS)
    assert report.stale(found, ROOT / "README.md", ROOT / "docs") == [], "run `python -m benchmarks report`"
