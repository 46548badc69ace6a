"""Clusters as connected components of links, which may come in portions."""

import numpy as np
import scipy.sparse
from scipy.sparse.csgraph import connected_components


def merge_clusters(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """int [S]: labels with the clusters of `first` and `second` (int [L], chains of each link) made one.

    Labels are below S, before and after.
    """
    if not len(first):
        return labels
    links = (np.ones(len(first), dtype=np.int8), (labels[first], labels[second]))
    _, joined = connected_components(scipy.sparse.coo_matrix(links, shape=(len(labels),) * 2), directed=False)
    return joined[labels]


def number_by_appearance(labels: np.ndarray) -> np.ndarray:
    """int64 [S]: the same clusters, numbered 0, 1, ... in the order in which their first chains come."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    number = np.empty(len(first), dtype=np.int64)
    number[np.argsort(first, kind="stable")] = np.arange(len(first))
    return number[inverse]


def first_of_each(labels: np.ndarray) -> np.ndarray:
    """int64 [C]: the first chain of every cluster, for labels as `number_by_appearance` gives them."""
    highest = np.maximum.accumulate(labels)
    return np.flatnonzero(np.diff(highest, prepend=-1) > 0)
