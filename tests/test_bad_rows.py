"""Bad rows are listed once, whoever finds them, and too many stop the run."""

import multiprocessing
import os
from pathlib import Path

import pytest

from trainers.data.bad_rows import BadRows


def record(folder: Path, rank: int, rows: list[str]) -> None:
    os.environ["RANK"] = str(rank)
    bad_rows = BadRows(folder, 0.5, 1)
    for row in rows:
        bad_rows.record(row, f"{row}.wav", "is empty")


def test_bad_rows_of_all_processes_are_listed_once(tmp_path):
    folder = tmp_path / "bad"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=record, args=(folder, rank, ["a", "b", "a", str(rank)])) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert {path.name.split("-process")[0] for path in folder.iterdir()} == {"rank-0", "rank-1"}
    bad_rows = BadRows(folder, 0.5, 1)
    assert sorted(row["id"] for row in bad_rows.read()) == ["0", "1", "a", "b"]
    before = sum(len(path.read_text()) for path in folder.iterdir())
    bad_rows.record("a", "a.wav", "is empty")  # a resumed run
    assert sum(len(path.read_text()) for path in folder.iterdir()) == before


def test_a_list_outlives_a_process_killed_while_writing(tmp_path):
    BadRows(tmp_path, 0.5, 1).record("a", "a.wav", "is empty")
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text() + '{"id": "b", "sou')
    bad_rows = BadRows(tmp_path, 0.5, 1)
    bad_rows.record("b", "b.wav", "ist zerstört")
    assert [row["id"] for row in bad_rows.read()] == ["a", "b"]
    assert bad_rows.read()[1]["finding"] == "ist zerstört"


def test_too_many_bad_rows_stop_the_run_with_the_first_findings(tmp_path):
    bad_rows = BadRows(tmp_path, max_share=0.1, minimum=20)
    bad_rows.record("a", "a.wav", "is empty")
    bad_rows.check(seen=19, bad=19)
    bad_rows.check(seen=20, bad=2)
    with pytest.raises(RuntimeError) as error:
        bad_rows.check(seen=20, bad=3)
    for part in ("3 of 20 rows (15.0%)", "10.0% allowed", str(tmp_path), "a (a.wav): is empty", "max_share"):
        assert part in str(error.value)


def test_bad_rows_without_a_folder_are_kept_in_memory():
    bad_rows = BadRows(None, 0.5, 1)
    bad_rows.record("a", "a.wav", "is empty")
    bad_rows.record("a", "a.wav", "is empty")
    assert bad_rows.read() == [{"id": "a", "source": "a.wav", "finding": "is empty"}]
