"""Datasets with one label for each protein, or for each pair of proteins."""

from eval.datasets import folds, functions, interactions, localisation, values
from eval.datasets.records import Layout

LAYOUTS: dict[str, tuple[Layout, ...]] = {
    **folds.LAYOUTS,
    **functions.LAYOUTS,
    **values.LAYOUTS,
    **localisation.LAYOUTS,
    **interactions.LAYOUTS,
}
"""By dataset, in order of preference: the published splits before those that are drawn here."""
