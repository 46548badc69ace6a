"""Alphabets: published token orders and lookups."""

import esm
import numpy as np
import pytest

from configs.errors import UserError
from pretrain.vocab import alphabet


def test_esm2_order_and_special_tokens_are_those_of_fair_esm() -> None:
    theirs, ours = esm.Alphabet.from_architecture("ESM-1b"), alphabet("esm2")
    assert list(ours.tokens) == theirs.all_toks
    assert (ours.cls_id, ours.pad_id, ours.eos_id, ours.unk_id, ours.mask_id) == (
        theirs.cls_idx, theirs.padding_idx, theirs.eos_idx, theirs.unk_idx, theirs.mask_idx,
    )  # fmt: skip
    sequence = "MKTAYIAKQRXBUZO.-"
    assert ours.encode(sequence).tolist() == theirs.encode(sequence)


def test_amplify_order_is_the_published_one() -> None:
    ours = alphabet("amplify")
    assert len(ours) == 27
    assert (ours.pad_id, ours.unk_id, ours.mask_id, ours.cls_id, ours.eos_id) == (0, 1, 2, 3, 4)
    assert ours.encode("LCB").tolist() == [6, 25, 26]


@pytest.mark.parametrize("family", ["esm2", "amplify"])
def test_letters_outside_the_alphabet_become_unknown(family: str) -> None:
    ours = alphabet(family)
    encoded = ours.encode("LJ*é ")
    assert encoded.dtype == np.int64
    assert encoded.tolist() == [ours.tokens.index("L"), *[ours.unk_id] * 4]
    assert ours.encode("").shape == (0,)


def test_unknown_family_names_the_allowed_ones() -> None:
    with pytest.raises(UserError, match="esm2, amplify"):
        alphabet("esm3")
