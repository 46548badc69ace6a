"""Pairs of proteins that interact or not: human (STRING, as GNN_PPI takes it) and yeast (DIP, as seq_ppi does)."""

from collections.abc import Sequence

from eval.datasets.assembly import Entry, assembled, recorded
from eval.datasets.files import Recorded
from eval.datasets.records import Dataset, Files, Layout, Record
from eval.datasets.splitting import degree_matched_negatives, three_ways
from eval.datasets.tables import column_of, table
from eval.datasets.tabular import lmdb_layout, tables_layouts

_GNN = "lvguofeng+GNN_PPI/data"
_SEQ_PPI = "muhaochen+seq_ppi/yeast/preprocessed"
_BY_PROTEIN = (
    "split here by protein: no test protein, nor one similar to it, is in train or validation, and at least one "
    "protein of a validation pair is not in train"
)


def _string(subset: str) -> Layout:
    """GNN_PPI's subset of STRING: sequences by protein, and actions, of which every pair counts as interacting."""
    sequences_at, actions_at = f"protein.{subset}.sequences.dictionary.tsv", f"protein.actions.{subset}.STRING.txt"

    def read(files: Files, prefix: str) -> Dataset:
        files = recorded(files)
        start = f"{prefix}/" if prefix else ""
        sequences = _sequences(files, f"{start}{sequences_at}")
        rows = table(files, f"{start}{actions_at}")
        first, second = (column_of(rows, [name], actions_at) for name in ("item_id_a", "item_id_b"))
        pairs = {tuple(sorted((row[first], row[second]))) for row in rows}
        known = sorted((a, b) for a, b in pairs if a != b and a in sequences and b in sequences)
        name_of = {sequence: name for name, sequence in sorted(sequences.items(), reverse=True)}
        positives = [Record(f"{a} {b}", (sequences[a], sequences[b]), 1) for a, b in known]
        splits = three_ways(positives)
        forbidden = {frozenset((sequences[a], sequences[b])) for a, b in known}
        entries: dict[str, list[Entry]] = {}
        for split, records in splits.items():
            drawn = degree_matched_negatives([(r.sequences[0], r.sequences[1]) for r in records], forbidden)
            entries[split] = [Entry(r.key, r.sequences, 1) for r in records]
            entries[split] += [Entry(f"{name_of[a]} {name_of[b]}", (a, b), 0) for a, b in drawn]
        left = len(positives) - sum(len(records) for records in splits.values())
        notes = (
            f"{_BY_PROTEIN}; {left:,} of {len(positives):,} interacting pairs have one test protein and are left out",
            "pairs that do not interact are drawn once among the proteins of each split, each protein as often as it "
            "stands in interacting pairs",
        )
        return assembled("ppi_human", f"GNN_PPI {subset} (STRING)", files, "pair_class", entries, notes=notes)

    return Layout(f"GNN_PPI {subset}", _GNN, (sequences_at, actions_at), read)


def _read_seq_ppi(name: str, files: Files, prefix: str) -> Dataset:
    """Pairs with labels and no split."""
    files = recorded(files)
    start = f"{prefix}/" if prefix else ""
    sequences = _sequences(files, f"{start}protein.dictionary.tsv")
    lines = files.read(f"{start}protein.actions.tsv").decode().splitlines()
    rows = [line.split("\t") for line in lines if line.count("\t") == 2]
    known = [row for row in rows if row[0] in sequences and row[1] in sequences]
    records = [Record(f"{a} {b}", (sequences[a], sequences[b]), int(label)) for a, b, label in known]
    splits = three_ways(records)
    left = len(records) - sum(len(part) for part in splits.values())
    entries = {split: [Entry(r.key, r.sequences, r.label) for r in part] for split, part in splits.items()}
    notes = [f"{_BY_PROTEIN}; {left:,} of {len(records):,} pairs have one test protein and are left out"]
    if len(known) < len(rows):
        notes.append(f"{len(rows) - len(known):,} pairs of proteins without a sequence left out")
    return assembled(name, "seq_ppi", files, "pair_class", entries, notes=notes)


def _sequences(files: Recorded, path: str) -> dict[str, str]:
    lines: Sequence[str] = files.read(path).decode().splitlines()
    return dict(line.split("\t")[:2] for line in lines if "\t" in line)


_PAIR_FILES = ("protein.actions.tsv", "protein.dictionary.tsv")
LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "ppi_human": (
        lmdb_layout("ppi_human", "pair_class", "HumanPPI/normal", ("label",)),
        *tables_layouts(
            "ppi_human", "pair_class", ("label", "labels", "interaction"), "PEER's and SaProt's human_ppi in tables"
        ),
        _string("SHS27k"),
        _string("SHS148k"),
    ),
    "ppi_yeast": (
        *tables_layouts("ppi_yeast", "pair_class", ("label", "labels", "interaction"), "PEER's yeast_ppi in tables"),
        Layout("seq_ppi yeast", _SEQ_PPI, _PAIR_FILES, lambda files, prefix: _read_seq_ppi("ppi_yeast", files, prefix)),
    ),
}
