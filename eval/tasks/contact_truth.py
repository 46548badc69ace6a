"""What a contact is, and the precision of the best-scored pairs."""

from dataclasses import dataclass

import numpy as np

from configs.evaluate import ContactConfig
from data_pipeline.structure.geometry import CA, cb_or_virtual
from eval.data import Example
from eval.datasets.contact_sets import ContactChain

UNBOUNDED = 1 << 30
DIVISORS = {"P@L": 1, "P@L/2": 2, "P@L/5": 5}


@dataclass(frozen=True)
class Definition:
    """Which residue pairs count."""

    atom: str
    """`CB`, virtual for glycine or where missing; or `CA`."""
    spans: dict[str, tuple[int, int]]
    """Name of a range -> smallest and largest |i - j|, both included."""

    @property
    def min_separation(self) -> int:
        """Closer pairs are no candidates, neither in fitting nor in precision."""
        return min(low for low, _ in self.spans.values())

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names in results.json."""
        return tuple(f"{name}_{span}" for span in self.spans for name in DIVISORS)


FIXED = Definition("CB", {"short": (6, 11), "medium": (12, 23), "long": (24, UNBOUNDED)})
PUBLISHED = Definition("CA", {"published": (7, UNBOUNDED)})
METRICS = (*FIXED.metrics, *PUBLISHED.metrics)
"""Of the first definition or of the second; a name tells which."""
METHOD = (
    "mean over chains of the precision of the floor(L / k) best-scored pairs (at least 1, at most the number of pairs "
    "there are), L the chain's residues; contact by contact.preset: `fixed` is CB (virtual for glycine or where "
    "missing) within the cutoff, short 6-11, medium 12-23, long >= 24; `published` is CA within the cutoff, |i - j| >= "
    "7; pairs without a known position are no candidates, chains without a contact of a range are left out of it"
)


def definition_of(config: ContactConfig) -> Definition:
    """Of the configured preset."""
    return PUBLISHED if config.preset == "published" else FIXED


def truth_of(chain: Example | ContactChain, config: ContactConfig) -> tuple[np.ndarray, np.ndarray]:
    """Contacts bool [N, N], symmetric, and which residues have a known position, bool [N]."""
    if chain.coordinates is None:
        contacts = np.zeros((len(chain), len(chain)), dtype=bool)
        contacts[chain.pairs[:, 0], chain.pairs[:, 1]] = True
        return contacts | contacts.T, np.ones(len(chain), dtype=bool)
    is_ca = definition_of(config).atom == "CA"
    position = chain.coordinates[:, CA].astype(np.float64) if is_ca else cb_or_virtual(chain.coordinates)
    known = np.isfinite(position).all(axis=1)
    with np.errstate(invalid="ignore"):
        contacts = np.linalg.norm(position[:, None] - position[None, :], axis=-1) < config.cutoff
    return contacts, known


def candidates(known: np.ndarray, min_separation: int) -> tuple[np.ndarray, np.ndarray]:
    """int64 rows and columns, row before column, of pairs far enough apart whose positions are known."""
    rows, columns = np.triu_indices(len(known), min_separation)
    kept = known[rows] & known[columns]
    return rows[kept], columns[kept]


def precisions(
    scores: np.ndarray, contacts: np.ndarray, known: np.ndarray, definition: Definition = FIXED
) -> dict[str, float]:
    """Precision of the best-scored pairs by metric; metrics of a range without any contact are left out.

    scores float [n, n], contacts bool [n, n], known bool [n]: only pairs of known residues are candidates. The number
    of top pairs is floor(n / k), at least 1 and at most the number of candidates; ties go to the smaller (i, j).
    """
    n = len(scores)
    rows, columns = candidates(known, definition.min_separation)
    found: dict[str, float] = {}
    for span, (low, high) in definition.spans.items():
        inside = (columns - rows >= low) & (columns - rows <= high)
        truth = contacts[rows[inside], columns[inside]]
        if not truth.any():
            continue
        order = np.argsort(-scores[rows[inside], columns[inside]], kind="stable")
        for name, divisor in DIVISORS.items():
            top = min(max(n // divisor, 1), len(order))
            found[f"{name}_{span}"] = float(truth[order[:top]].mean())
    return found
