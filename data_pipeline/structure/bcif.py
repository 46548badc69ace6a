"""BinaryCIF (Sehnal et al. 2020, PLoS Comput. Biol. 16, e1008247): MessagePack maps of encoded columns.

Only numpy decodes here, no array is made longer than its category has rows, and no category may claim more rows than
its file could hold, so that damaged files end in an error and neither in a crash nor in a full memory.
"""

import itertools
from typing import Any

import gemmi
import msgpack
import numpy as np

from data_pipeline.structure.chain import StructureError
from data_pipeline.structure.formats import AtomTable, atom_index, shortened

_METADATA = (
    "_entry",
    "_entity",
    "_entity_poly",
    "_entity_poly_seq",
    "_struct_asym",
    "_exptl",
    "_refine",
    "_em_3d_reconstruction",
    "_pdbx_database_status",
    "_ma_qa_metric",
    "_ma_data",
    "_struct",
    "_pdbx_struct_mod_residue",
    "_pdbx_struct_assembly",
    "_pdbx_struct_assembly_gen",
)
_ARRAY_TYPES = {1: "<i1", 2: "<i2", 3: "<i4", 4: "<u1", 5: "<u2", 6: "<u4", 32: "<f4", 33: "<f8"}
_ROWS_PER_BYTE = 8
"""Most rows a category may claim for each byte of its file; atoms take about 20 bytes each."""
_FEW_ROWS = 2**16
"""Claims up to this many rows are always believed."""
_PRESENT = 0
_COORDINATE_DECIMALS = 3


class Category:
    """Columns of one category, decoded when asked for."""

    def __init__(self, content: dict[str, Any], max_rows: int) -> None:
        self.num_rows = int(content["rowCount"])
        if not 0 <= self.num_rows <= max_rows:
            raise ValueError(f"a category claims {self.num_rows} rows")
        self.columns = {column["name"]: column for column in content["columns"]}

    def values(self, name: str) -> np.ndarray:
        """[rows], of numbers.

        Raises:
            KeyError: there is no such column.
            ValueError: the column's length differs from the category's row count.
        """
        values = _decoded(self.columns[name]["data"], self.num_rows)
        if len(values) != self.num_rows:
            raise ValueError(f"column {name} has {len(values)} rows, its category {self.num_rows}")
        return values

    def mask(self, name: str) -> np.ndarray:
        """[rows]: 0 where a value is present, 1 for `.`, 2 for `?`."""
        mask = self.columns[name].get("mask")
        values = np.zeros(self.num_rows, dtype=np.int64) if mask is None else _decoded(mask, self.num_rows)
        if len(values) != self.num_rows:
            raise ValueError(f"mask of {name} has {len(values)} rows, its category {self.num_rows}")
        return values

    def words(self, name: str, fallback: str | None = None) -> tuple[list[str], np.ndarray]:
        """Distinct strings and each row's index among them: '' where no value is present or both columns are absent."""
        if name not in self.columns:
            return ([""], np.zeros(self.num_rows, dtype=np.int64)) if fallback is None else self.words(fallback)
        words, index = _decoded_words(self.columns[name]["data"], self.num_rows)
        if len(index) != self.num_rows:
            raise ValueError(f"column {name} has {len(index)} rows, its category {self.num_rows}")
        return [*words, ""], np.where(self.mask(name) == _PRESENT, index, len(words))

    def strings(self, name: str) -> list[str]:
        """The string of each row, '' where no value is present."""
        words, index = self.words(name)
        return [words[i] for i in index.tolist()]


def read_bcif(data: bytes) -> tuple[gemmi.Structure, gemmi.cif.Block, AtomTable]:
    """Facts and sequences (a gemmi structure and its block, without atoms) and backbone atoms of the first model.

    Raises:
        StructureError: `truncated`, `no_coordinates`, or `parse_error` when its parts do not fit together.
    """
    try:
        blocks = msgpack.unpackb(data)["dataBlocks"]
    except msgpack.ExtraData:
        raise StructureError("parse_error", "bytes follow the end of the BinaryCIF data") from None
    except ValueError as error:
        cut = "incomplete" in str(error)
        raise StructureError("truncated" if cut else "parse_error", f"BinaryCIF: {error}") from None
    try:
        max_rows = max(_ROWS_PER_BYTE * len(data), _FEW_ROWS)
        categories = [{c["name"]: Category(c, max_rows) for c in block["categories"]} for block in blocks]
        chosen = next((found for found in categories if "_atom_site" in found), None)
        if chosen is None:
            raise StructureError("no_coordinates", "the file has no _atom_site category")
        with np.errstate(all="ignore"):
            block = _metadata(chosen)
            return gemmi.make_structure_from_block(block), block, _atoms(chosen)
    except StructureError:
        raise
    except Exception as error:  # the decoders meet arbitrary values in a damaged file
        raise StructureError("parse_error", f"BinaryCIF: {type(error).__name__}: {error}") from error


def _metadata(categories: dict[str, Category]) -> gemmi.cif.Block:
    """The categories that are not atoms and hold facts, as text for gemmi."""
    block = gemmi.cif.Document().add_new_block("metadata")
    for name in _METADATA:
        if name in categories:
            category = categories[name]
            columns = {column: _with_gaps(category, column) for column in category.columns}
            block.set_mmcif_category(f"{name}.", columns)
    return block


def _with_gaps(category: Category, name: str) -> list[str | bool | None]:
    """A column's values as gemmi takes them: False for `.`, None for `?`."""
    gaps = {1: False, 2: None}
    return [gaps.get(m, text) for text, m in zip(category.strings(name), category.mask(name).tolist(), strict=True)]


def _atoms(categories: dict[str, Category]) -> AtomTable:
    sites = categories["_atom_site"]
    atom = atom_index(_name_codes(sites.words("label_atom_id", "auth_atom_id"), {}))
    rows = np.flatnonzero((atom >= 0) & _is_polymer(categories) & _in_first_model(sites))
    names = {
        "residue_name": sites.words("label_comp_id", "auth_comp_id"),
        "subchain": sites.words("label_asym_id", "auth_asym_id"),
        "chain": sites.words("auth_asym_id", "label_asym_id"),
    }
    aliases = shortened(word for words, _ in names.values() for word in words)
    number = "auth_seq_id" if "auth_seq_id" in sites.columns else "label_seq_id"
    return AtomTable(
        atom=atom[rows],
        **{column: _name_codes(words, aliases)[rows] for column, words in names.items()},
        number=sites.values(number)[rows].astype(np.int32),
        insertion=_characters(sites.words("pdbx_PDB_ins_code"), absent=b" ")[rows],
        altloc=_characters(sites.words("label_alt_id"), absent=b"\0")[rows],
        position=np.stack([_coordinate(sites, f"Cartn_{axis}", rows) for axis in "xyz"], axis=1),
        bfactor=_bfactors(sites, rows),
        aliases={alias: name for name, alias in aliases.items()},
    )


def _is_polymer(categories: dict[str, Category]) -> np.ndarray:
    """bool [atoms]: by the kind of the atom's entity, or by its sequence number where entities are not described."""
    sites, entities = categories["_atom_site"], categories.get("_entity")
    if entities is None or "type" not in entities.columns or "label_entity_id" not in sites.columns:
        return sites.mask("label_seq_id") == _PRESENT
    kinds = dict(zip(entities.strings("id"), entities.strings("type"), strict=True))
    words, index = sites.words("label_entity_id")
    return np.array([kinds.get(word) == "polymer" for word in words])[index]


def _in_first_model(sites: Category) -> np.ndarray:
    if "pdbx_PDB_model_num" not in sites.columns or sites.num_rows == 0:
        return np.ones(sites.num_rows, dtype=bool)
    models = sites.values("pdbx_PDB_model_num")
    return models == models[0]


def _coordinate(sites: Category, name: str, rows: np.ndarray) -> np.ndarray:
    """float64 [n]; single precision is rounded back to the decimals that were deposited."""
    values = sites.values(name)[rows]
    wide = values.astype(np.float64)
    if values.dtype == np.float32:
        wide = np.round(wide, _COORDINATE_DECIMALS)
    return np.where(sites.mask(name)[rows] == _PRESENT, wide, np.nan)


def _bfactors(sites: Category, rows: np.ndarray) -> np.ndarray:
    if "B_iso_or_equiv" not in sites.columns:
        return np.zeros(len(rows), dtype=np.float32)
    return sites.values("B_iso_or_equiv")[rows].astype(np.float32)


def _name_codes(column: tuple[list[str], np.ndarray], aliases: dict[str, str]) -> np.ndarray:
    """int64 [rows] name codes of a column of words; names beyond eight bytes go by their alias."""
    words, index = column
    short = [aliases.get(word, word).encode()[:8].ljust(8, b"\0") for word in words]
    return np.frombuffer(b"".join(short), dtype=np.int64)[index]


def _characters(column: tuple[list[str], np.ndarray], absent: bytes) -> np.ndarray:
    """int8 [rows]: first byte of each word."""
    words, index = column
    return np.frombuffer(b"".join((word.encode() or absent)[:1] for word in words), dtype=np.int8)[index]


def _decoded(data: dict[str, Any], max_values: int) -> np.ndarray:
    """The numbers that `data.data` encodes, its encodings undone from the last to the first."""
    values: Any = data["data"]
    for encoding in reversed(data["encoding"]):
        if encoding["kind"] == "RunLength":
            values = _run_length(values, max_values)
        else:
            values = _DECODERS[encoding["kind"]](values, encoding)
    return values


def _decoded_words(data: dict[str, Any], max_values: int) -> tuple[list[str], np.ndarray]:
    """Distinct strings and each row's index, of a column of strings or of numbers."""
    encoding = data["encoding"][0]
    if encoding["kind"] != "StringArray":
        words, index = np.unique(_decoded(data, max_values), return_inverse=True)
        return [str(word) for word in words.tolist()], index
    # One offset more than there are distinct strings.
    offsets = _decoded({"data": encoding["offsets"], "encoding": encoding["offsetEncoding"]}, max_values + 1).tolist()
    index = _decoded({"data": data["data"], "encoding": encoding["dataEncoding"]}, max_values)
    text = encoding["stringData"]
    words = [text[start:stop] for start, stop in itertools.pairwise(offsets)]
    # An index of -1 stands for an absent value and finds the empty string put last.
    return [*words, ""], np.where(index < 0, len(words), index)


def _byte_array(data: bytes, encoding: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(data, dtype=_ARRAY_TYPES[encoding["type"]])


def _fixed_point(values: np.ndarray, encoding: dict[str, Any]) -> np.ndarray:
    # Always double: dividing gives the decimal that was deposited, which single precision cannot hold.
    return values.astype(np.float64) / encoding["factor"]


def _interval_quantization(values: np.ndarray, encoding: dict[str, Any]) -> np.ndarray:
    step = (encoding["max"] - encoding["min"]) / (encoding["numSteps"] - 1)
    return (encoding["min"] + values * step).astype(_ARRAY_TYPES[encoding["srcType"]])


def _run_length(values: np.ndarray, max_values: int) -> np.ndarray:
    counts = values[1::2].astype(np.int64)
    if (counts < 0).any() or (counts > max_values).any() or counts.sum() > max_values:
        raise ValueError("a run length is out of range")
    return np.repeat(values[::2], counts)


def _delta(values: np.ndarray, encoding: dict[str, Any]) -> np.ndarray:
    return np.cumsum(values, dtype=np.int64) + encoding["origin"]


def _integer_packing(values: np.ndarray, encoding: dict[str, Any]) -> np.ndarray:
    """Sums each run of extreme values with the value that ends it."""
    bits = 8 * encoding["byteCount"]
    largest = 2**bits - 1 if encoding["isUnsigned"] else 2 ** (bits - 1) - 1
    continues = values == largest
    if not encoding["isUnsigned"]:
        continues |= values == -largest - 1
    if not continues.any():
        return values
    ends = np.flatnonzero(~continues)
    sums = np.cumsum(values, dtype=np.int64)[ends]
    return np.diff(sums, prepend=0)


_DECODERS = {
    "ByteArray": _byte_array,
    "FixedPoint": _fixed_point,
    "IntervalQuantization": _interval_quantization,
    "Delta": _delta,
    "IntegerPacking": _integer_packing,
}
