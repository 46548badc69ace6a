"""Mutated structure files never crash, hang or fill the memory; files cut anywhere never pass for whole.

Every mutation is a function of its seed and index, which a failure names.
"""

import contextlib
import dataclasses
import gzip
import json
import math
import multiprocessing
import random
import re
import resource
import tarfile
from collections import Counter
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from data_pipeline.isolation import limited
from data_pipeline.structure.chain import AMINO_ACIDS, UNKNOWN_RESIDUE, Chain, StructureError
from data_pipeline.structure.integrity import UNTERMINATED
from data_pipeline.structure.parse import REASONS, parse_structure
from tests.unit.data_pipeline.structure.models import bcif_bytes, gemmi_structure, mmcif_bytes, pdb_bytes, random_fold

Files = list[tuple[str, bytes]]

SHORT_MUTATIONS, LONG_MUTATIONS = 300, 10_000
SHORT_CUTS, LONG_CUTS = 15, 200
SECONDS_PER_FILE = 5.0
"""CPU time; the largest of these files takes a few hundredths of a second."""
MEMORY_BYTES = 4 * 2**30
"""Address space of the process that parses: room for the libraries, none for arrays made of a wrong number."""
PEAK_KIBIBYTES = 1024**2
NUM_FILES = 25
TOKENS = (b"nan", b"inf", b"1e400", b"-", b".", b"?", b"99999999999999999999", b"-2147483649", b"'", b'"', b";", b"#")
TOKENS += (
    b"loop_",
    b"data_x",
    b"stop_",
    b"_atom_site.id",
    b"\n;\n",
    b"\xff\xfe",
    b"\0",
    b"\r",
    b"\xc3\xa9",
    b"A" * 5000,
)
KEY = re.compile(r"[A-Za-z0-9_-]{1,100}")


def synthetic_files() -> Files:
    """Two entries in the three formats, and compressed."""
    random_letters = random.Random(0)
    files = []
    for entry, lengths in (("1ABC", {"A": 60}), ("2XYZ", {"A": 30, "B": 45})):
        chains = {
            name: ("".join(random_letters.choices(AMINO_ACIDS, k=n)), random_fold(n, seed=n) + 70.0 * i)
            for i, (name, n) in enumerate(lengths.items())
        }
        structure = gemmi_structure(chains, entry)
        mmcif = mmcif_bytes(structure)
        files += [(f"{entry}.pdb", pdb_bytes(structure)), (f"{entry}.cif", mmcif), (f"{entry}.bcif", bcif_bytes(mmcif))]
    return [*files, ("1ABC.cif.gz", gzip.compress(files[1][1]))]


def smallest_files(real_data: Path) -> Files:
    """The smallest files of real entries with protein chains, in the three formats in turn."""
    by_suffix: dict[str, Files] = {".pdb": [], ".cif": [], ".bcif": []}
    with tarfile.open(real_data / "structures" / "mixed_formats.tar.xz") as archive:
        members = [member for member in archive.getmembers() if Path(member.name).suffix in by_suffix]
        for member in sorted(members, key=lambda member: member.size)[: 2 * NUM_FILES]:
            data = archive.extractfile(member).read()
            with contextlib.suppress(StructureError):
                parse_structure(data, member.name)
                by_suffix[Path(member.name).suffix].append((member.name, data))
    chosen = [files[i] for i in range(NUM_FILES) for files in by_suffix.values() if i < len(files)]
    return chosen[:NUM_FILES]


def mutated(files: Files, seed: int, index: int) -> tuple[str, bytes]:
    """A file's name and its content after one to three mutations."""
    chosen = random.Random(f"{seed}:{index}")
    name, data = files[chosen.randrange(len(files))]
    if name.endswith(".bcif") and chosen.random() < 0.5:
        tree = msgpack.unpackb(data)
        for _ in range(chosen.randint(1, 3)):
            change_tree(chosen, tree)
        return name, msgpack.packb(tree)
    for _ in range(chosen.randint(1, 3)):
        data = chosen.choice(MUTATIONS)(chosen, data) if data else data
    return name, data


def span(chosen: random.Random, data: bytes, longest: int = 400) -> tuple[int, int]:
    start = chosen.randrange(len(data))
    return start, min(len(data), start + chosen.randint(1, longest))


def flip(chosen: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(chosen.choice((1, 1, 3, 30))):
        changed[chosen.randrange(len(changed))] ^= 1 << chosen.randrange(8)
    return bytes(changed)


def delete(chosen: random.Random, data: bytes) -> bytes:
    start, stop = span(chosen, data, chosen.choice((2, 400, 50_000)))
    return data[:start] + data[stop:]


def duplicate(chosen: random.Random, data: bytes) -> bytes:
    start, stop = span(chosen, data, chosen.choice((2, 400, 50_000)))
    return data[:stop] + data[start:]


def blank(chosen: random.Random, data: bytes) -> bytes:
    start, stop = span(chosen, data)
    return data[:start] + chosen.choice((b"\0", b" ", b"\n")) * (stop - start) + data[stop:]


def insert(chosen: random.Random, data: bytes) -> bytes:
    start = chosen.randrange(len(data))
    token = chosen.choice((*TOKENS, chosen.randbytes(8), chosen.randbytes(200)))
    return data[:start] + chosen.choice((b"", b" ", b"\n")) + token + chosen.choice((b"", b" ", b"\n")) + data[start:]


def swap_lines(chosen: random.Random, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    for _ in range(chosen.choice((1, 5, 50))):
        i, j = chosen.randrange(len(lines)), chosen.randrange(len(lines))
        lines[i], lines[j] = lines[j], lines[i]
    return b"".join(lines)


def repeat_or_drop_lines(chosen: random.Random, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    start = chosen.randrange(len(lines))
    stop = start + chosen.choice((1, 2, 20, 500))
    return b"".join(lines[:start] + lines[start:stop] * chosen.choice((0, 2, 5)) + lines[stop:])


def change_number(chosen: random.Random, data: bytes) -> bytes:
    numbers = list(re.finditer(rb"-?\d+(\.\d+)?", data[: 2**18]))
    if not numbers:
        return data
    found = chosen.choice(numbers)
    return data[: found.start()] + chosen.choice(TOKENS) + data[found.end() :]


def truncate(chosen: random.Random, data: bytes) -> bytes:
    return data[: chosen.randrange(len(data))]


MUTATIONS = (flip, delete, duplicate, blank, insert, swap_lines, repeat_or_drop_lines, change_number, truncate)


def change_tree(chosen: random.Random, tree: Any) -> None:
    """Change one value somewhere in unpacked BinaryCIF to another of any type, drop it, or double it."""
    while True:
        places = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
        if not places:
            return
        place = chosen.choice(places)
        if isinstance(tree[place], dict | list) and chosen.random() < 0.9:
            tree = tree[place]
            continue
        value = tree[place]
        others: list[Any] = [
            0,
            1,
            -1,
            3,
            2**31 - 1,
            -(2**31),
            2**62,
            1.5,
            math.nan,
            math.inf,
            "",
            "Delta",
            None,
            [],
            {},
        ]
        others += [b"", b"\xff" * 64, ["RunLength"], "IntegerPacking", "ByteArray"]
        if isinstance(value, bytes) and len(value) > 1:
            others += [
                flip(chosen, value),
                value[:-1],
                value * 2,
                value[: len(value) // 2],
                chosen.randbytes(len(value)),
            ] * 5
        if isinstance(tree, list) and chosen.random() < 0.3:
            tree.insert(place, value)
        elif chosen.random() < 0.1:
            del tree[place]
        else:
            tree[place] = chosen.choice(others)
        return


def check_chains(chains: list[Chain]) -> None:
    """What holds for the chains of any file."""
    assert chains
    assert len({chain.key for chain in chains}) == len(chains)
    for chain in chains:
        assert KEY.fullmatch(chain.key), chain.key
        assert len(chain.sequence) == len(chain.coordinates) == len(chain.bfactor) > 0
        assert set(chain.sequence) <= set(AMINO_ACIDS + UNKNOWN_RESIDUE)
        assert not np.isinf(chain.coordinates).any()
        assert not np.isinf(chain.bfactor).any()
        assert np.nanmax(np.abs(chain.coordinates)) <= 1e5
        assert np.isfinite(chain.coordinates).all(axis=2).any()
        json.dumps([dataclasses.asdict(chain.facts), chain.notes], allow_nan=False)


def outcome(data: bytes, name: str) -> str:
    """The reason of rejection, or `chains`; anything else is an error that passes."""
    try:
        chains = parse_structure(data, name)
    except StructureError as error:
        return error.reason if error.reason in REASONS else f"unknown reason {error.reason}"
    check_chains(chains)
    return "chains"


def parse_mutations(files: Files, seed: int, indices: range, reached: "Synchronized[int]", results: Any) -> None:
    """Outcome of each index; a process of its own, whose death tells `reached`."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    counts: Counter[str] = Counter()
    errors = []
    for index in indices:
        reached.value = index
        name, data = mutated(files, seed, index)
        try:
            with limited(SECONDS_PER_FILE):
                counts[outcome(data, name)] += 1
        except Exception as error:
            errors.append((seed, index, name, f"{type(error).__name__}: {error}"[:300]))
    results.put((dict(counts), errors, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))


def fuzz(files: Files, seed: int, count: int) -> Counter[str]:
    """Outcomes of `count` mutations.

    Raises:
        AssertionError: one of them ended the process, took too long, or raised what is no StructureError.
    """
    context = multiprocessing.get_context("spawn")
    reached, results = context.Value("q", -1), context.SimpleQueue()
    process = context.Process(target=parse_mutations, args=(files, seed, range(count), reached, results))
    process.start()
    process.join()
    assert process.exitcode == 0, f"seed {seed}, index {reached.value} ended the process: {process.exitcode}"
    counts, errors, peak = results.get()
    assert errors == []
    assert sum(counts.values()) == count
    assert set(counts) <= {"chains", *REASONS}
    assert peak < PEAK_KIBIBYTES
    return Counter(counts)


def check_variety(counts: Counter[str]) -> None:
    """The mutations meet the parser's inside, and not only its first line."""
    assert counts["chains"] > 0.1 * counts.total(), counts
    assert min(counts["parse_error"], counts["truncated"]) > 0.05 * counts.total(), counts


@pytest.fixture(scope="module")
def real_files(real_data: Path) -> Files:
    return smallest_files(real_data)


def test_mutated_synthetic_files_are_rejected_or_give_chains() -> None:
    check_variety(fuzz(synthetic_files(), seed=1, count=SHORT_MUTATIONS))


@pytest.mark.data
def test_mutated_real_files_are_rejected_or_give_chains(real_files: Files) -> None:
    check_variety(fuzz(real_files, seed=2, count=SHORT_MUTATIONS))


@pytest.mark.long
@pytest.mark.data
def test_ten_thousand_mutated_real_files_are_rejected_or_give_chains(real_files: Files) -> None:
    check_variety(fuzz(real_files, seed=3, count=LONG_MUTATIONS))


def cut_outcome(data: bytes, name: str, whole: list[Chain]) -> str:
    """`rejected`, `flagged`, `same chains` as of the whole file, or `silent`: fewer chains or residues, and no word."""
    try:
        chains = parse_structure(data, name)
    except StructureError:
        return "rejected"
    check_chains(chains)
    if all({UNTERMINATED} & set(chain.notes) for chain in chains):
        return "flagged"
    is_same = [chain.sequence for chain in chains] == [chain.sequence for chain in whole] and all(
        np.array_equal(one.coordinates, other.coordinates, equal_nan=True)
        for one, other in zip(chains, whole, strict=True)
    )
    return "same chains" if is_same else "silent"


def cut_files(files: Files, cuts: int) -> dict[str, Counter[str]]:
    """Outcomes by format of cutting each file at random bytes and, as often, at line ends."""
    outcomes: dict[str, Counter[str]] = {}
    for name, data in files:
        chosen = random.Random(name)
        try:
            whole = parse_structure(data, name)
        except StructureError:
            continue
        ends = [found.end() for found in re.finditer(rb"\n", data.rstrip())] or [1]
        places = [chosen.randrange(1, len(data.rstrip())) for _ in range(cuts)] + chosen.choices(ends, k=cuts)
        counts = outcomes.setdefault(Path(name).suffix, Counter())
        counts.update(cut_outcome(data[:place], name, whole) for place in places)
    return outcomes


def bare(files: Files) -> Files:
    """The text files as programs write them: PDB atoms alone, mmCIF without `#` lines."""
    kept = []
    for name, data in files:
        lines = data.splitlines(keepends=True)
        if name.endswith(".pdb"):
            kept.append((name, b"".join(line for line in lines if line.startswith((b"ATOM", b"TER")))))
        elif name.endswith(".cif"):
            kept.append((name, b"".join(line for line in lines if not line.startswith(b"#"))))
    return kept


def check_cuts(files: Files, cuts: int) -> None:
    outcomes = cut_files(files, cuts)
    assert set(outcomes) >= {".pdb", ".cif", ".bcif"}
    for suffix, counts in outcomes.items():
        assert counts["silent"] == 0, (suffix, counts)
        # Two of the real mmCIF files close no category, so that some of their cuts can only be noted.
        assert counts["rejected"] > 0.6 * counts.total(), (suffix, counts)
    for suffix, counts in cut_files(bare(files), cuts).items():
        assert counts["silent"] == counts["same chains"] == 0, (suffix, counts)


def test_cut_synthetic_files_never_pass_for_whole() -> None:
    check_cuts(synthetic_files(), SHORT_CUTS)


@pytest.mark.data
def test_cut_real_files_never_pass_for_whole(real_files: Files) -> None:
    check_cuts(real_files[:9], SHORT_CUTS)


@pytest.mark.long
@pytest.mark.data
def test_real_files_cut_at_hundreds_of_places_never_pass_for_whole(real_files: Files) -> None:
    check_cuts(real_files, LONG_CUTS)
