"""Random trunks and proteins for parity tests: weights large enough that a misplaced one shows."""

import numpy as np
import torch
from torch import Tensor, nn

from pretrain.batch import Packed
from pretrain.model.encoder import Encoder
from pretrain.model.shape import TrunkShape
from pretrain.vocab import Alphabet, alphabet

LETTERS = "LAGVSERTIDPKQNFYMHWC"
ESM2_8M = TrunkShape("esm2", 6, 320, 20)
SMALL_AMPLIFY = TrunkShape("amplify", 4, 128, 2)


def scramble(module: nn.Module, seed: int) -> None:
    """Draw every parameter anew: biases and norms too, which start at 0 and 1 and would hide a swap."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.copy_(0.5 * noise + (1.0 if parameter.mean() > 0.5 else 0.0))
            else:
                parameter.copy_(noise * parameter.shape[1] ** -0.5)


def scrambled_encoder(shape: TrunkShape, seed: int = 0) -> Encoder:
    encoder = Encoder(shape).eval()
    scramble(encoder, seed)
    return encoder


def masked_proteins(family: str, lengths: tuple[int, ...] = (60, 7, 33, 33), seed: int = 1) -> list[Tensor]:
    """Token sequences with special tokens and about 15 % `<mask>`, another share in each protein."""
    rng = np.random.default_rng(seed)
    tokens = alphabet(family)
    proteins = []
    for i, length in enumerate(lengths):
        residues = tokens.encode("".join(rng.choice(list(LETTERS), length)))
        residues[rng.random(length) < 0.08 * (i + 1)] = tokens.mask_id
        proteins.append(torch.tensor([tokens.cls_id, *residues, tokens.eos_id]))
    return proteins


def pack(proteins: list[Tensor]) -> Packed:
    return Packed(torch.cat(proteins), tuple(len(protein) for protein in proteins))


def pad(proteins: list[Tensor], tokens: Alphabet) -> tuple[Tensor, Tensor]:
    """Tokens [P, L] and attention mask [P, L], as padding implementations take them."""
    padded = nn.utils.rnn.pad_sequence(proteins, batch_first=True, padding_value=tokens.pad_id)
    return padded, (padded != tokens.pad_id).long()


def unpad(values: Tensor, proteins: list[Tensor]) -> Tensor:
    """Rows [T, ...] of padded [P, L, ...]."""
    return torch.cat([row[: len(protein)] for row, protein in zip(values, proteins, strict=True)])
