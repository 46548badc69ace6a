"""Token alphabets of the trunks: residues to token numbers by one table lookup."""

from dataclasses import dataclass
from functools import cache

import numpy as np

from configs.errors import UserError

ESM2_TOKENS = ("<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>")
"""fair-esm's order."""
AMPLIFY_TOKENS = ("<pad>", "<unk>", "<mask>", "<bos>", "<eos>", "|", *"LAGVSERTIDPKQNFYMHWCB")
"""The published AMPLIFY order; there is no `X`, unknown residues become `<unk>`."""
ESMC_TOKENS = (*(token.replace("<null_1>", "|") for token in ESM2_TOKENS), *(f"<unused_{i}>" for i in range(33, 64)))
"""ESM-2's order with a chain break; the published embedding has 64 rows."""


@dataclass(frozen=True)
class Alphabet:
    """The tokens of one trunk family; a token's number is its place in `tokens`."""

    tokens: tuple[str, ...]
    cls_id: int
    """Token put before every sequence (`<cls>`, or `<bos>` for AMPLIFY)."""
    pad_id: int
    eos_id: int
    unk_id: int
    mask_id: int

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(self, sequence: str) -> np.ndarray:
        """int64 [N]: token of every residue, without special tokens; letters outside the alphabet become unk_id."""
        return _byte_table(self)[np.frombuffer(sequence.encode("ascii", errors="replace"), dtype=np.uint8)]


@cache
def _byte_table(alphabet: Alphabet) -> np.ndarray:
    """int64 [256]: token number of every byte."""
    table = np.full(256, alphabet.unk_id, dtype=np.int64)
    for number, token in enumerate(alphabet.tokens):
        if len(token) == 1:
            table[ord(token)] = number
    return table


def _alphabet(tokens: tuple[str, ...], cls: str) -> Alphabet:
    number = {token: i for i, token in enumerate(tokens)}
    return Alphabet(tokens, number[cls], number["<pad>"], number["<eos>"], number["<unk>"], number["<mask>"])


_ALPHABETS = {
    "esm2": _alphabet(ESM2_TOKENS, "<cls>"),
    "amplify": _alphabet(AMPLIFY_TOKENS, "<bos>"),
    "esmc": _alphabet(ESMC_TOKENS, "<cls>"),
}


def alphabet(family: str) -> Alphabet:
    """The alphabet of trunk family `esm2`, `amplify` or `esmc`.

    Raises:
        UserError: another family.
    """
    if family not in _ALPHABETS:
        raise UserError(f"trunk family {family!r} is not known; allowed: {', '.join(_ALPHABETS)}")
    return _ALPHABETS[family]
