"""Where in the cell a protein is (DeepLoc: ten places; membrane-bound or soluble), and whether it binds metal ions."""

from typing import Any

from eval.datasets.assembly import Entry, assembled, recorded
from eval.datasets.records import Dataset, Files, Layout
from eval.datasets.tables import fasta
from eval.datasets.tabular import lmdb_layout, tables_layouts

PLACES = (
    "Cell.membrane",
    "Cytoplasm",
    "Endoplasmic.reticulum",
    "Extracellular",
    "Golgi.apparatus",
    "Lysosome/Vacuole",
    "Mitochondrion",
    "Nucleus",
    "Peroxisome",
    "Plastid",
)
STATES = ("membrane-bound", "soluble")
_STATE_OF = {"M": "membrane-bound", "S": "soluble"}
_FOLDER = "HannesStark+protein-localization/data_files"
_PARTS = {
    "train": "deeploc_our_train_set.fasta",
    "validation": "deeploc_our_val_set.fasta",
    "test": "deeploc_test_set.fasta",
}


def _deeploc(name: str, part: int) -> Layout:
    """DeepLoc's FASTA files: `>Q9H400 Cell.membrane-M test`; U is an unknown state, `Cytoplasm-Nucleus` no class."""

    def read(files: Files, prefix: str) -> Dataset:
        files = recorded(files)
        entries: dict[str, list[Entry]] = {}
        for split, path in _PARTS.items():
            place = f"{prefix}/{path}" if prefix else path
            if files.has(place):
                entries[split] = [
                    Entry(header.split()[0], (sequence,), _words(header.split()[1])[part])
                    for header, sequence in fasta(files, place)
                    if len(header.split()) > 1
                ]
        classes = STATES if part else PLACES
        return assembled(
            name, "DeepLoc, FASTA files as of protein-localization", files, "class", entries, classes=classes
        )

    return Layout("DeepLoc FASTA", _FOLDER, (_PARTS["validation"], _PARTS["test"]), read)


def _words(label: str) -> tuple[str, str]:
    """Place and state of `Cell.membrane-M` or `Cell.membrane,M`."""
    place, _, state = label.replace(",", "-").rpartition("-")
    return place, _STATE_OF.get(state, state)


def _place(label: Any) -> Any:
    """One of the ten places, without the state where it stands with it; numbers stay."""
    text = str(label)
    if text.isdecimal():
        return label
    place = _words(text)[0] if text.endswith((",M", ",S", ",U", "-M", "-S", "-U")) else text
    return place if place in PLACES else None


def _state(label: Any) -> Any:
    """One of the two states; numbers stay."""
    text = str(label)
    return label if text.isdecimal() else _STATE_OF.get(text)


_BIOMAP = "hf://datasets/proteinglm/{0} and hf://datasets/biomap-research/{0}"
LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "localisation_10": (
        lmdb_layout("localisation_10", "class", "DeepLoc/cls10/normal", ("label",)),
        _deeploc("localisation_10", 0),
        *tables_layouts(
            "localisation_10",
            "class",
            ("loc", "location", "localization", "label"),
            f"hf://datasets/proteinea/deeploc, hf://datasets/AI4Protein/DeepLocMulti, "
            f"hf://datasets/mila-intel/ProtST-SubcellularLocalization, {_BIOMAP.format('localization_prediction')}",
            mapped=_place,
        ),
    ),
    "localisation_2": (
        lmdb_layout("localisation_2", "class", "DeepLoc/cls2/normal", ("label",)),
        _deeploc("localisation_2", 1),
        *tables_layouts(
            "localisation_2",
            "class",
            ("membrane", "localization", "label"),
            "hf://datasets/proteinea/deeploc, hf://datasets/AI4Protein/DeepLocBinary and "
            "hf://datasets/mila-intel/ProtST-BinaryLocalization",
            mapped=_state,
        ),
    ),
    "metal_ion": (
        lmdb_layout("metal_ion", "class", "MetalIonBinding/AF2/normal", ("label",), classes=("no", "yes")),
        *tables_layouts(
            "metal_ion",
            "class",
            ("label",),
            f"{_BIOMAP.format('metal_ion_binding')}, hf://datasets/AI4Protein/MetalIonBinding",
            classes=("no", "yes"),
        ),
    ),
}
