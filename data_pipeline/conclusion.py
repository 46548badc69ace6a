"""The last step of a build: the reject list, the inputs' hash and, last, the manifest."""

import hashlib
import json
import os
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from configs.build import BuildConfig
from data_pipeline.inputs import Inputs
from data_pipeline.manifest import (
    MANIFEST_NAME,
    NO_LEAKAGE,
    REJECTS_NAME,
    SPLITS,
    LeakageFacts,
    Manifest,
    ShardFacts,
    SourceFacts,
    SplitFacts,
    vocabulary_sha256,
    write_atomically,
    write_sealed,
)
from data_pipeline.output_folder import INPUTS_NAME
from data_pipeline.placement import Placement
from data_pipeline.schema import SCHEMA_VERSION
from data_pipeline.spool import Reject

NEUTRAL_SETTINGS: dict[str, Any] = {"output": True, "num_workers": True, "source": {"remote": True}}
"""Settings that cannot change a byte of the shards; those of remote access may also hold what is private."""


def conclude(
    config: BuildConfig,
    inputs: Inputs,
    identity: str,
    placement: Placement,
    shards: dict[str, ShardFacts],
    rejects: Sequence[Reject],
    scratch: Path,
) -> Manifest:
    """Write the reject list, the inputs' hash and the manifest into the output folder."""
    output = config.output.absolute()
    _check_splits(placement)
    lines = "".join(json.dumps(asdict(reject), sort_keys=True) + "\n" for reject in rejects).encode()
    write_atomically(output / REJECTS_NAME, lines, scratch)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        vocabulary_sha256=vocabulary_sha256(),
        config=config.model_dump(mode="json", exclude=NEUTRAL_SETTINGS),
        commit=_commit(),
        source=SourceFacts(
            kind=config.source.kind, entries=len(inputs.entries), entries_sha256=inputs.names_and_sizes_sha256
        ),
        splits={split: _split_facts(code, split, placement, shards) for code, split in enumerate(SPLITS)},
        chains=len(placement) + len(rejects),
        kept=len(placement),
        dropped=dict(sorted(Counter(reject.reason for reject in rejects).items())),
        rejects_sha256=hashlib.sha256(lines).hexdigest(),
        leakage=LeakageFacts(
            clusters_in_two_splits=0,
            statement=NO_LEAKAGE,
            clustering=placement.clustering,
            splitting=placement.splitting,
            against=placement.leakage,
        ),
    )
    write_atomically(output / INPUTS_NAME, json.dumps({"identity": identity}).encode() + b"\n", scratch)
    write_sealed(output / MANIFEST_NAME, manifest, scratch)
    return manifest


def _check_splits(placement: Placement) -> None:
    """No cluster stands in two splits: of each cluster the least and the greatest split are the same."""
    order = np.lexsort((placement.split, placement.cluster))
    cluster, split = placement.cluster[order], placement.split[order]
    crossing = (cluster[1:] == cluster[:-1]) & (split[1:] != split[:-1])
    assert not crossing.any(), "a cluster stands in two splits"


def _split_facts(code: int, split: str, placement: Placement, shards: dict[str, ShardFacts]) -> SplitFacts:
    rows = placement.split == code
    return SplitFacts(
        samples=int(rows.sum()),
        residues=int(placement.table["residues"].to_numpy()[rows].sum(dtype=np.int64)),
        clusters=len(np.unique(placement.cluster[rows])),
        high_quality=int(placement.high_quality[rows].sum()),
        shards=tuple(shards[name] for name in sorted(shards) if name.startswith(f"{split}-")),
    )


def _commit() -> str | None:
    """Commit of this code: from SAPLM_COMMIT (a submitted job has no .git), else from git."""
    if given := os.environ.get("SAPLM_COMMIT"):
        return given
    root = Path(__file__).parents[1]
    command = ["git", "-C", str(root), "rev-parse", "--verify", "--quiet", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return answer.stdout.strip() or None
