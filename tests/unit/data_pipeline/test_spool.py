"""Columns of parsed batches on disk."""

from pathlib import Path

import pyarrow as pa

from configs.build import BuildConfig
from data_pipeline.spool import (
    BatchTask,
    MappedTable,
    ParsedBatch,
    ParseSettings,
    Reject,
    chain_table,
    map_table,
    read_columns,
    sequence_digest,
    write_columns,
)
from tests.unit.data_pipeline.test_placement import row


def finished_batch(folder: Path) -> tuple[BatchTask, ParsedBatch]:
    task = BatchTask("0" * 32, str(folder), (), ParseSettings.of(BuildConfig(output=folder)))
    task.tar.write_bytes(b"samples")
    rejects = (Reject("b.pdb", "", "truncated", "the last line is cut"),)
    batch = ParsedBatch(7, 2, chain_table([row("a_A", "ACDEF")]), rejects, {"parse": 0.25})
    write_columns(task, batch)
    return task, batch


def test_columns_rejects_and_times_are_read_back(tmp_path: Path) -> None:
    task, batch = finished_batch(tmp_path)
    found = read_columns(task)
    assert found is not None
    assert found.chains.equals(batch.chains)
    assert (found.tar_bytes, found.entries, found.rejects, found.seconds) == (7, 2, batch.rejects, {"parse": 0.25})


def test_a_batch_whose_files_do_not_fit_together_is_not_finished(tmp_path: Path) -> None:
    task, _ = finished_batch(tmp_path)
    whole = task.columns.read_bytes()
    for end in range(0, len(whole), 61):
        task.columns.write_bytes(whole[:end])
        assert read_columns(task) is None
    task.columns.write_bytes(whole)
    task.tar.write_bytes(b"less")
    assert read_columns(task) is None


def test_a_batch_without_chains_keeps_its_rejects(tmp_path: Path) -> None:
    task = BatchTask("1" * 32, str(tmp_path), (), ParseSettings.of(BuildConfig(output=tmp_path)))
    task.tar.write_bytes(b"")
    write_columns(task, ParsedBatch(0, 1, chain_table([]), (Reject("a", "", "empty_file", ""),), {}))
    found = read_columns(task)
    assert found is not None
    assert (found.chains.num_rows, len(found.rejects)) == (0, 1)


def test_a_mapped_table_holds_the_rows_of_all_parts_in_order(tmp_path: Path) -> None:
    table = MappedTable(tmp_path / "columns.arrow")
    for part in ([row("a_A", "AC"), row("b_A", "DE")], [], [row("c_A", "FG")]):
        table.append(chain_table(part))
    before = pa.total_allocated_bytes()
    mapped = table.finish()
    assert mapped["key"].to_pylist() == ["a_A", "b_A", "c_A"]
    assert map_table(tmp_path / "columns.arrow").equals(mapped)
    assert [path.name for path in tmp_path.iterdir()] == ["columns.arrow"]
    # The rows lie in the file's pages; Arrow has taken no memory for them.
    assert pa.total_allocated_bytes() <= before


def test_digests_tell_sequences_apart() -> None:
    assert sequence_digest("ACDE") == sequence_digest("ACDE")
    assert len({sequence_digest(s) for s in ("", "A", "AC", "CA", "ACD")}) == 5
