"""Datasets of labelled residues: secondary structure, binding, disorder, conservation, membrane topology."""

from eval.datasets.binding import BINDING_LAYOUTS
from eval.datasets.records import Layout
from eval.datasets.residue_properties import PROPERTY_LAYOUTS
from eval.datasets.secondary import SECONDARY_LAYOUTS

LAYOUTS: dict[str, tuple[Layout, ...]] = {**SECONDARY_LAYOUTS, **BINDING_LAYOUTS, **PROPERTY_LAYOUTS}
"""By dataset name; of several layouts that are there, the first counts."""
