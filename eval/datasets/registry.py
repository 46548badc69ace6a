"""Every benchmark dataset, and the layouts in which publishers give it."""

from eval.datasets import proteins, residues
from eval.datasets.records import Layout

LAYOUTS: dict[str, tuple[Layout, ...]] = {**proteins.LAYOUTS, **residues.LAYOUTS}
