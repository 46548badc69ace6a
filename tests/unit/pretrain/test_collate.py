"""Collation: packing, masking, cropping, against a plain loop."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from data_pipeline.schema import Sample
from data_pipeline.structure.chain import AMINO_ACIDS
from pretrain.batch import Batch
from pretrain.collate import Item, collate
from pretrain.sampler import Crop
from pretrain.vocab import Alphabet, alphabet
from tests.unit.pretrain.training import make_chain

FRACTION = 0.15


def make_items(numbers: list[int], width: int = 6) -> list[Item]:
    items = []
    for number in numbers:
        sample = make_chain(number)
        teacher = np.random.default_rng(number).normal(size=(len(sample), width)).astype(np.float16)
        start = number % 5
        items.append(Item(Crop(number, start, len(sample) - start - number % 3), sample, sample.cluster, teacher))
    return items


def batch_of(items: list[Item], family: str = "esm2", seed: int = 0, epoch: int = 0) -> Batch:
    return collate(items, alphabet(family), FRACTION, seed, epoch, describe=True)


def unmasked(batch: Batch) -> np.ndarray:
    tokens = batch.packed.tokens.numpy().copy()
    tokens[batch.masked_index.numpy()] = batch.masked_target.numpy()
    return tokens


def cut(item: Item) -> slice:
    return slice(item.crop.start, item.crop.start + item.crop.length)


@pytest.mark.parametrize("family", ["esm2", "amplify"])
def test_tokens_and_rows_equal_a_plain_loop_over_chains(family: str) -> None:
    items, tokens = make_items([3, 8, 1]), alphabet(family)
    batch = batch_of(items, family)
    wanted, place = [], []
    for item in items:
        sequence = item.sample.sequence[cut(item)]
        place += range(len(wanted) + 1, len(wanted) + 1 + len(sequence))
        wanted += [tokens.cls_id, *(tokens.tokens.index(letter) for letter in sequence), tokens.eos_id]
    assert unmasked(batch).tolist() == wanted
    assert batch.residue_index.tolist() == place
    assert batch.packed.lengths == tuple(item.crop.length + 2 for item in items)
    assert batch.threedi.tolist() == [s for item in items for s in item.sample.threedi_states()[cut(item)]]
    assert batch.protein.tolist() == [item.crop.sample for item in items for _ in range(item.crop.length)]
    assert batch.cluster.tolist() == [item.cluster for item in items for _ in range(item.crop.length)]
    bfactor = np.concatenate([item.sample.bfactor[cut(item)] for item in items])
    np.testing.assert_array_equal(batch.bfactor.numpy(), bfactor)


def test_teacher_rows_are_cropped_and_zero_where_there_is_no_structure() -> None:
    items = make_items([4, 9])
    batch = batch_of(items)
    valid = np.concatenate([item.sample.valid[cut(item)] for item in items])
    rows = np.concatenate([item.teacher[cut(item)] for item in items]).astype(np.float32)
    np.testing.assert_array_equal(batch.structure_valid.numpy(), valid)
    np.testing.assert_array_equal(batch.teacher.numpy(), np.where(valid[:, None], rows, 0))


def test_a_residue_without_embedding_takes_no_part_in_the_contrast() -> None:
    (item,) = make_items([2])
    item.teacher[item.crop.start] = 0
    assert item.sample.valid[item.crop.start]
    assert not batch_of([item]).structure_valid[0]


def test_without_a_teacher_the_batch_has_none() -> None:
    items = [replace(item, teacher=None) for item in make_items([2, 3])]
    assert batch_of(items).teacher is None


def masked_by_chain(batch: Batch) -> dict[int, set[int]]:
    """Chain number -> places within its crop that are masked."""
    starts = np.cumsum([0, *batch.packed.lengths])
    found: dict[int, set[int]] = {}
    for index in batch.masked_index.tolist():
        chain = int(np.searchsorted(starts, index, side="right")) - 1
        number = int(batch.protein[batch.residue_index == index][0])
        found.setdefault(number, set()).add(index - int(starts[chain]) - 1)
    return found


def test_a_chain_is_masked_alike_whatever_stands_beside_it_and_anew_each_epoch() -> None:
    together = masked_by_chain(batch_of(make_items([5, 6, 7])))
    assert masked_by_chain(batch_of(make_items([7]))) == {7: together[7]}
    assert masked_by_chain(batch_of(make_items([6, 5]))) == {6: together[6], 5: together[5]}
    assert masked_by_chain(batch_of(make_items([7]), epoch=1)) != {7: together[7]}
    assert masked_by_chain(batch_of(make_items([7]), seed=1)) != {7: together[7]}


def test_the_masked_share_is_exact_in_each_chain_and_always_the_mask_token() -> None:
    items, tokens = make_items([5, 6, 7]), alphabet("esm2")
    batch = batch_of(items)
    wanted = {item.crop.sample: max(1, round(FRACTION * item.crop.length)) for item in items}
    assert {number: len(places) for number, places in masked_by_chain(batch).items()} == wanted
    assert set(batch.packed.tokens[batch.masked_index].tolist()) == {tokens.mask_id}
    assert (batch.packed.tokens == tokens.mask_id).sum() == len(batch.masked_index)


def with_sequence(sample: Sample, sequence: str) -> Sample:
    return replace(sample, sequence=sequence)


def test_unknown_residues_are_never_masked_and_every_residue_sometimes_is() -> None:
    sample = make_chain(3)
    sample = with_sequence(sample, "X" * (len(sample) // 2) + sample.sequence[len(sample) // 2 :])
    item = Item(Crop(3, 0, len(sample)), sample, 0, None)
    seen: set[int] = set()
    for epoch in range(200):
        seen |= masked_by_chain(batch_of([item], epoch=epoch))[3]
    assert seen == set(range(len(sample) // 2, len(sample)))


def test_a_chain_of_unknown_residues_only_has_nothing_masked() -> None:
    sample = make_chain(3)
    sample = with_sequence(sample, "X" * len(sample))
    batch = batch_of([Item(Crop(3, 0, len(sample)), sample, 0, None)])
    assert len(batch.masked_index) == len(batch.masked_target) == 0


def test_every_standard_residue_has_a_token_of_its_own() -> None:
    for family in ("esm2", "amplify"):
        tokens: Alphabet = alphabet(family)
        assert len(set(tokens.encode(AMINO_ACIDS).tolist()) - {tokens.unk_id}) == len(AMINO_ACIDS)


FROZEN = {
    ("esm2", 0, 0, True): "0e4111a112c9c0517982c83c4be5c08bdb040a909f3c81d12e4ebbab6b0a00c2",
    ("esm2", 0, 0, False): "6ab45b73c2b15bfcc6ca16a7d51213b6fed0364c823873e4f13beb4462337d03",
    ("esm2", 7, 3, True): "6d5f5cf5612d3f1376f37e8738d073425fa16b87834ec271b220a47583433119",
    ("amplify", 7, 3, True): "a369bc73b75c3a26189f2ac707925766e45b0b88c96053418797754740996689",
}
"""Batches of forty chains as the first version made them: a run that is resumed must see the same ones."""
FIRST_FIELDS = (
    *("packed", "masked_index", "masked_target", "residue_index", "threedi", "structure_valid", "teacher", "protein"),
    *("cluster", "bfactor"),
)
"""The fields that the first version had."""


def digest(batch: Batch) -> str:
    done = hashlib.sha256(repr(batch.packed.lengths).encode())
    for name in FIRST_FIELDS:
        value = batch.packed.tokens if name == "packed" else getattr(batch, name)
        done.update(name.encode())
        if value is not None:
            array = value.numpy()
            done.update(f"{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return done.hexdigest()


@pytest.mark.parametrize("case", FROZEN, ids=str)
def test_batches_are_those_of_the_first_version_bit_by_bit(case: tuple[str, int, int, bool]) -> None:
    family, seed, epoch, with_teacher = case
    items = make_items(list(range(40)))
    if not with_teacher:
        items = [replace(item, teacher=None) for item in items]
    assert digest(batch_of(items, family, seed, epoch)) == FROZEN[case]


def with_reliability(items: list[Item], reliable: bool) -> list[Item]:
    """Every third residue is marked as unreliable, or all as reliable."""
    marks = [np.full(len(i.sample), True) if reliable else np.arange(len(i.sample)) % 3 > 0 for i in items]
    return [replace(i, sample=replace(i.sample, reliable=m)) for i, m in zip(items, marks, strict=True)]


def test_unreliable_residues_have_no_structure_target_and_keep_their_token() -> None:
    items = make_items([3, 8, 1])
    marked = with_reliability(items, False)
    plain, batch = batch_of(items), batch_of(marked)
    unreliable = ~np.concatenate([item.sample.reliable[cut(item)] for item in marked])
    assert (batch.threedi[unreliable] == -1).all()
    assert not batch.structure_valid[unreliable].any()
    assert not batch.teacher[unreliable].any()
    assert batch.threedi[~unreliable].tolist() == plain.threedi[~unreliable].tolist()
    assert batch.structure_valid[~unreliable].tolist() == plain.structure_valid[~unreliable].tolist()
    assert batch.packed.tokens.tolist() == plain.packed.tokens.tolist()
    assert batch.masked_index.tolist() == plain.masked_index.tolist()


def test_reliability_changes_nothing_where_all_is_reliable_unknown_or_switched_off() -> None:
    items = make_items([3, 8, 1])
    assert digest(batch_of(with_reliability(items, True))) == digest(batch_of(items))
    off = collate(
        with_reliability(items, False), alphabet("esm2"), FRACTION, 0, 0, mask_unreliable=False, describe=True
    )
    assert digest(off) == digest(batch_of(items))
    mixed = [with_reliability(items, True)[0], *items[1:]]
    assert digest(batch_of(mixed)) == digest(batch_of(items))
