"""Protein function as sets of labels: EC numbers and Gene Ontology terms."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from configs.errors import UserError
from eval.datasets.assembly import Entry, assembled, recorded
from eval.datasets.files import Recorded, matching
from eval.datasets.records import Dataset, Files, Layout, Record
from eval.datasets.splitting import clusters_of, three_ways
from eval.datasets.tables import column_of, fasta, table
from eval.datasets.tabular import lmdb_layout, tables_layouts

_DEEPFRI = "flatironinstitute+DeepFRI/preprocessing/data"
_SPLM = "duolinwang+S-PLM/SPLM_Data/EC_data"
_EVIDENCE = "TurkuNLP+CAFA3/data/Swissprot_evidence.tsv.gz"
_PARENTS = "TurkuNLP+CAFA3/data/parent_term2term.txt.gz"
_YEAST = "yeast_swissprot.fasta.gz"
EXPERIMENTAL = frozenset(("EXP", "IDA", "IPI", "IMP", "IGI", "IEP", "TAS", "IC"))
MIN_TRAIN_PROTEINS = 10
"""A GO term with fewer training proteins is not asked for in the Swiss-Prot set of yeast (DeepFRI asks for 50 of a
training set ten times as large)."""
IDENTITIES = ("30", "40", "50", "70", "95")
"""Percent identity to training below which DeepFRI and later work report parts of the test set."""


@dataclass(frozen=True)
class Branch:
    """One branch of the Gene Ontology."""

    task: str
    title: str
    """As DeepFRI's annotation file calls it."""
    root: str
    folder: str
    """SaProt's and AI4Protein's name."""


BRANCHES = (
    Branch("go_mf", "molecular_function", "GO:0003674", "MF"),
    Branch("go_bp", "biological_process", "GO:0008150", "BP"),
    Branch("go_cc", "cellular_component", "GO:0005575", "CC"),
)


def _deepfri(task: str, kind: str, title: str) -> Layout:
    """`nrPDB-<kind>_<date>`: annotations, lists of chains by split, sequences, and identity to training in test.csv."""

    def read(files: Files, prefix: str) -> Dataset:
        files = recorded(files)
        start = f"{prefix}/nrPDB-{kind}_*" if prefix else f"nrPDB-{kind}_*"
        names, labels = _annotations(files, matching(files, f"{start}annot.tsv")[0], title)
        sequences: dict[str, str] = {}
        for path in matching(files, f"{start}sequences.fasta"):
            sequences.update((header.split()[0], sequence) for header, sequence in fasta(files, path))
        identity: dict[str, dict[str, str]] = {}
        for path in matching(files, f"{start}test.csv"):
            rows = table(files, path)
            chain = column_of(rows, ["PDB-chain"], path)
            identity.update((row[chain], row) for row in rows)
        entries: dict[str, list[Entry]] = {}
        missing = 0
        for split, listed in (("train", "train"), ("validation", "valid"), ("test", "test")):
            chains = [c for path in matching(files, f"{start}{listed}.txt") for c in files.read(path).decode().split()]
            chains = chains or (list(identity) if split == "test" else [])
            missing += sum(chain not in sequences for chain in chains)
            entries[split] = [Entry(c, (sequences[c],), labels.get(c)) for c in chains if c in sequences]
        groups = {
            f"below_{level}": np.array([identity[e.key].get(f"<{level}%") == "1" for e in entries["test"]], dtype=bool)
            for level in IDENTITIES
            if entries["test"] and all(f"<{level}%" in identity.get(e.key, {}) for e in entries["test"])
        }
        notes = (f"{missing:,} chains without a sequence in the files left out",) if missing else ()
        source = f"DeepFRI nrPDB-{kind}"
        return assembled(task, source, files, "labels", entries, classes=names, notes=notes, groups=groups)

    needs = (f"nrPDB-{kind}_*annot.tsv", f"nrPDB-{kind}_*train.txt", f"nrPDB-{kind}_*[0-9]_sequences.fasta")
    return Layout(f"DeepFRI nrPDB-{kind}", _DEEPFRI, needs, read)


def _annotations(files: Recorded, path: str, title: str) -> tuple[list[str], dict[str, tuple[str, ...]]]:
    """Label names, and labels by chain, of DeepFRI's annotation file.

    It has a line `### <labels>` before the tab-separated names of each branch, and `### PDB-chain<tab>...` before the
    chains, whose columns are in the order of the branches and parted by commas.
    """
    lines = files.read(path).decode().splitlines()
    heads = [i for i, line in enumerate(lines) if line.startswith("### PDB-chain")]
    starts = [i for i, line in enumerate(lines) if line.startswith("###") and title in line and "name" not in line]
    if not heads or not starts or starts[0] + 1 >= len(lines):
        raise UserError(f"{path}: not DeepFRI's form (no line `### PDB-chain` or `### ... {title}`); fetch it again")
    columns = lines[heads[0]].split("\t")
    column = next((i for i, name in enumerate(columns) if i and title in name), None)
    if column is None:
        raise UserError(f"{path}: no column of {title} among {', '.join(columns)}; fetch it again")
    rows = (line.split("\t") for line in lines[heads[0] + 1 :] if line.strip())
    labels = {row[0]: tuple(row[column].split(",")) for row in rows if len(row) > column and row[column]}
    return lines[starts[0] + 1].split("\t"), labels


def _read_splm_ec(files: Files, prefix: str) -> Dataset:
    """Validation and test chains; the publisher gives no sequences of training chains."""
    files = recorded(files)
    start = f"{prefix}/" if prefix else ""
    names, _ = _annotations(files, f"{start}nrPDB-EC_annot.tsv", "EC-numbers")
    entries: dict[str, list[Entry]] = {}
    for split, path in (("validation", f"{start}EC_valid.csv"), ("test", f"{start}EC_test.csv")):
        rows = table(files, path) if files.has(path) else []
        if rows:
            key, sequence, label = (column_of(rows, [name], path) for name in ("Protein ID", "Sequence", "Label"))
            entries[split] = [Entry(row[key], (row[sequence] or "",), row[label]) for row in rows]
    return assembled("ec", "S-PLM EC_data", files, "labels", entries, classes=names)


def _swissprot(branch: Branch) -> Layout:
    """Experimental terms of yeast's Swiss-Prot entries, with all their ancestors."""

    def read(files: Files, prefix: str) -> Dataset:
        files = recorded(files)
        ancestors = _ancestors(files, _PARENTS)
        terms: dict[str, set[str]] = defaultdict(set)
        experimental = list(experimental_terms(files))
        for entry, term in experimental:
            reached = ancestors.get(term, frozenset()) | {term}
            if branch.root in reached:
                terms[entry] |= reached - {branch.root}
        known = {entry for entry, _ in experimental}
        found = [(header.split()[0].rsplit("|", 1)[-1], sequence) for header, sequence in fasta(files, _YEAST)]
        found = [(name, sequence) for name, sequence in found if name in known]
        # Of all branches together, so that the work is done once for the three of them.
        clusters = clusters_of([sequence for _, sequence in found])
        entries = [
            Entry(name, (sequence,), tuple(sorted(terms[name])), int(cluster))
            for (name, sequence), cluster in zip(found, clusters, strict=True)
            if terms.get(name)
        ]
        splits = three_ways([Record(e.key, e.sequences, i, e.cluster) for i, e in enumerate(entries)])
        train = Counter(term for record in splits["train"] for term in entries[int(record.label)].label)
        names = sorted(term for term, number in train.items() if number >= MIN_TRAIN_PROTEINS)
        parts = {split: [entries[int(record.label)] for record in records] for split, records in splits.items()}
        notes = (
            "split here by sequence cluster: the publisher's splits are of other species",
            f"{len(names):,} terms with at least {MIN_TRAIN_PROTEINS} training proteins, ancestors included, without "
            "the root",
        )
        source = "experimental GO terms of yeast's Swiss-Prot entries (CAFA3 evidence)"
        return assembled(branch.task, source, files, "labels", parts, classes=names, notes=notes)

    return Layout("Swiss-Prot terms of TurkuNLP's CAFA3", "", (_EVIDENCE, _PARENTS, _YEAST), read)


def experimental_terms(files: Files) -> Iterator[tuple[str, str]]:
    """Entry name and GO term with experimental evidence, as CAFA counts it (EXP, IDA, IPI, IMP, IGI, IEP, TAS, IC)."""
    for line in files.read(_EVIDENCE).decode().splitlines():
        entry, term, code = line.split("\t")
        if code in EXPERIMENTAL:
            yield entry, term


def _ancestors(files: Recorded, path: str) -> dict[str, frozenset[str]]:
    """All ancestors of every term, by the table of parents and children."""
    parents: dict[str, list[str]] = defaultdict(list)
    rows: Sequence[str] = files.read(path).decode().splitlines()
    for parent, child in (line.split("\t") for line in rows[1:] if line.strip()):
        parents[child].append(parent)
    known: dict[str, frozenset[str]] = {}

    def of(term: str) -> frozenset[str]:
        if term not in known:
            known[term] = frozenset()
            known[term] = frozenset(parents[term]).union(*(of(parent) for parent in parents[term]))
        return known[term]

    for term in list(parents):
        of(term)
    return known


def _go(branch: Branch) -> tuple[Layout, ...]:
    return (
        _deepfri(branch.task, "GO", branch.title),
        lmdb_layout(branch.task, "labels", f"GO/AF2/{branch.folder}/normal", ("label",)),
        *tables_layouts(branch.task, "labels", ("label",), f"hf://datasets/AI4Protein/GO_{branch.folder}"),
        _swissprot(branch),
    )


LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "ec": (
        _deepfri("ec", "EC", "EC-numbers"),
        lmdb_layout("ec", "labels", "EC/AF2/normal", ("label",)),
        *tables_layouts("ec", "labels", ("label",), "hf://datasets/AI4Protein/EC"),
        Layout("S-PLM EC_data", _SPLM, ("EC_valid.csv", "nrPDB-EC_annot.tsv"), _read_splm_ec),
    ),
    **{branch.task: _go(branch) for branch in BRANCHES},
}
