"""Derived columns: what a frozen teacher or reference model says of every chain, written once beside the shards."""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from configs.engine import EngineConfig
from configs.errors import UserError
from configs.train import TrainConfig
from data_pipeline.derived import COMPONENTS_NAME, DERIVED_FOLDER, DerivedManifest, write_derived_manifest
from data_pipeline.manifest import MANIFEST_NAME, read_sealed
from data_pipeline.reader import ShardReader
from pretrain.derive_forms import Errors, Moments, Projection, projection_sha256
from pretrain.derive_pool import Pool, PoolSize
from pretrain.derive_progress import shown
from pretrain.derive_reference import reference_source
from pretrain.derive_shard import (
    WORK_FOLDER,
    DeriveSettings,
    MomentsTask,
    ShardResult,
    ShardTask,
    ShardWorker,
    open_worker,
)
from pretrain.derive_source import Source, TeacherSource
from pretrain.ray_workers import ray_cluster
from pretrain.teachers.load import load_teacher
from pretrain.teachers.protocol import Teacher

ALGORITHM = 1
"""Raised whenever the same teacher and settings would give other bytes."""
SMALL_RESIDUES = 100_000
"""Columns below this are made without Ray, whose start costs as much time as they do."""
PCA_SHARDS = 16
"""Shards over which the residues are spread that principal components are fitted on."""
log = logging.getLogger("pretrain.derive")
Run = Callable[[Sequence[Any]], Iterator[Any]]
"""Results of tasks, in any order."""


def derive_teacher(config: TrainConfig, shards: Path) -> None:
    """Write the column of every teacher that names one: embeddings of every chain of every split, in `derive.form`.

    The work is done shard by shard. Shards that an interrupted run finished are kept; so is a finished column of the
    same teacher and settings, except for shards of it that are damaged or lost. Another one is replaced.

    Raises:
        UserError: no column named, no teacher to load, no shards, settings that do not fit, or a shard over which
            workers die again and again.
    """
    teachers = [teacher for teacher in (config.teacher, *config.more_teachers) if teacher.column is not None]
    names = [teacher.column for teacher in teachers]
    if not teachers:
        raise UserError(
            f"teacher.column is not set: name the column to write, e.g. teacher.column={config.teacher.kind}"
        )
    if len(set(names)) < len(names):
        raise UserError(f"more_teachers: columns {', '.join(names)}; allowed: one column for each teacher, rename one")
    for settings in teachers:
        teacher, derive = load_teacher(settings), config.derive
        if derive.pca_width is not None and derive.pca_width > teacher.width:
            raise UserError(
                f"derive.pca_width {derive.pca_width}: the teacher has {teacher.width} features; allowed: 1 to"
                f" {teacher.width}"
            )
        source = TeacherSource(settings, teacher.weights_sha256, derive)
        depends_on_base = derive.form == "pca"
        _write(config, shards, settings.column, source, column_facts(config, teacher), depends_on_base)


def derive_reference(config: TrainConfig, shards: Path) -> None:
    """Write the column `selection.column`: what the frozen reference model loses on every chain, approximately.

    Per residue its 3Di loss averaged over `derive.masks` fixed masks, and both of its projections; written and
    continued like a teacher's column.

    Raises:
        UserError: as `derive_teacher`, and no reference model, or one that does not fit the config.
    """
    name = config.selection.column
    if name is None:
        raise UserError("selection.column is not set: name the column to write, e.g. selection.column=reference")
    if name in {teacher.column for teacher in (config.teacher, *config.more_teachers)}:
        raise UserError(f"selection.column {name!r}: is a teacher's column; choose another name")
    with ShardReader(shards, verify=config.data.verify) as reader:
        source, facts = reference_source(config, reader)
    _write(config, shards, name, source, facts, depends_on_base=True)
    log.info("derived column %s is an approximation of the reference model: %s", name, facts["approximation"])


def _write(
    config: TrainConfig, shards: Path, name: str, source: Source, facts: dict[str, Any], depends_on_base: bool
) -> None:
    """Bring one column about."""
    started = time.perf_counter()
    with ShardReader(shards, verify=config.data.verify) as reader:
        column = _Column(config, reader, name, source, facts, depends_on_base)
        with _runner(config, column) as run:
            results = column.make(run)
        residues = sum(result.facts.residues for result in results if result.made)
        if not residues:
            log.info("derived column %s of %s is up to date", name, shards)
            return
        seconds = time.perf_counter() - started
        log.info(
            "derived column %s: %d residues in %.1f s, %.0f residues/s", name, residues, seconds, residues / seconds
        )


class _Column:
    """What the column is to hold, and what is there of it."""

    def __init__(
        self,
        config: TrainConfig,
        reader: ShardReader,
        name: str,
        source: Source,
        facts: dict[str, Any],
        depends_on_base: bool,
    ) -> None:
        """`depends_on_base`: a chain's arrays depend on other chains of the shards, or on its place among them."""
        self.reader = reader
        self.folder = Path(reader.folder).resolve() / DERIVED_FOLDER / name
        self.facts = facts
        content = reader.manifest.content_sha256 if depends_on_base else None
        identity = json.dumps([ALGORITHM, self.facts, content], sort_keys=True)
        self.settings = DeriveSettings(
            started_in=os.getcwd(),
            shards=Path(reader.folder).resolve(),
            column=self.folder,
            verify=config.data.verify,
            source=source,
            derive=config.derive,
            pca=facts["form"] == "pca",
            identity=hashlib.sha256(identity.encode()).hexdigest(),
        )
        self.num_shards = sum(len(reader.files(split)) for split in reader.splits)
        self.residues = sum(file.facts.residues for split in reader.splits for file in reader.files(split))

    def make(self, run: Run) -> list[ShardResult]:
        """Bring every shard about, then declare the column finished; results in the order of the base shards."""
        known = self._known()
        if known is None:
            self._begin()
        if self.settings.pca:
            self._fit(run)
        there = {shard.name: shard for shards in known.splits.values() for shard in shards} if known else {}
        tasks = [
            ShardTask(file.facts.name, split, number, there.get(file.facts.name))
            for split in self.reader.splits
            for number, file in enumerate(self.reader.files(split))
        ]
        results = list(shown(run(tasks), self.residues, self.settings.source.what))
        results.sort(key=lambda result: (self.reader.splits.index(result.split), result.number))
        if known is None or any(there[result.facts.name] != result.facts for result in results):
            self._finish(results, known)
        _remove(self.folder / WORK_FOLDER)
        return results

    def _begin(self) -> None:
        """From here on the column does not count as finished, whatever it was."""
        try:
            (self.folder / WORK_FOLDER).mkdir(parents=True, exist_ok=True)
            (self.folder / MANIFEST_NAME).unlink(missing_ok=True)
        except OSError as error:
            raise UserError(
                f"derived column {self.folder}: cannot be written ({error.strerror}); derive beside shards that lie in"
                " a folder you may write to"
            ) from None

    def _known(self) -> DerivedManifest | None:
        """The manifest of a finished column of the same settings and base."""
        try:
            manifest, _ = read_sealed(self.folder / MANIFEST_NAME, DerivedManifest, "it is written again")
        except OSError:
            return None
        except UserError as error:
            log.info("%s", error)
            return None
        facts = {key: value for key, value in manifest.facts.items() if key in self.facts}
        same = (
            facts == self.facts
            and manifest.facts.get("identity") == self.settings.identity
            and manifest.base_sha256 == self.reader.manifest.content_sha256
            and manifest.facts.get("pca_sha256") == self._pca_sha256()
        )
        return manifest if same else None

    def _pca_sha256(self) -> str | None:
        if not self.settings.pca:
            return None
        return projection_sha256(self.folder, self.settings.identity)

    def _fit(self, run: Run) -> None:
        """The principal components of embeddings from all over the first split (train, where there is one)."""
        if self._pca_sha256() is not None:
            return
        derive, split = self.settings.derive, self.reader.splits[0]
        files = self.reader.files(split)
        chosen = np.unique(np.linspace(0, len(files) - 1, PCA_SHARDS).astype(int)).tolist()
        each = -(-derive.pca_residues // len(chosen))
        tasks = [MomentsTask(files[number].facts.name, split, number, each) for number in chosen]
        parts: dict[int, Moments] = dict(run(tasks))
        total = parts[chosen[0]]
        for number in chosen[1:]:
            total = total.plus(parts[number])
        if not total.residues:
            raise UserError(f"derive.form pca: no residue of split {split!r} has a backbone; use another form")
        assert derive.pca_width is not None
        Projection.fitted(total, derive.pca_width).write(self.folder, self.settings.identity, self.folder / WORK_FOLDER)
        log.info("%d principal components fitted on %d residues", derive.pca_width, total.residues)

    def _finish(self, results: list[ShardResult], known: DerivedManifest | None) -> None:
        facts = {**self.facts, "identity": self.settings.identity}
        if self.settings.pca:
            facts["pca_sha256"] = self._pca_sha256()
        if known is not None:
            # Only damaged shards were made, again with the same content, so that the error is what it was.
            facts["error"] = known.facts["error"]
        else:
            facts["error"] = Errors.total(result.errors for result in results if result.errors).figures()
        splits = {split: [result.facts for result in results if result.split == split] for split in self.reader.splits}
        named = {name for shards in splits.values() for shard in shards for name in (shard.name, shard.index)}
        named |= {MANIFEST_NAME, COMPONENTS_NAME} if "pca_sha256" in facts else {MANIFEST_NAME}
        for path in self.folder.iterdir():
            if path.is_file() and path.name not in named:
                path.unlink()
        write_derived_manifest(self.reader.manifest, self.folder, facts, splits)
        error = facts["error"]
        log.info(
            "form %s: relative error %.2g, cosine to what was computed %.6f on average, %.6f at worst",
            *(facts["form"], error["relative_rms"], error["cosine_mean"], error["cosine_min"]),
        )


def column_facts(config: TrainConfig, teacher: Teacher) -> dict[str, Any]:
    """What a column says of where its embeddings come from, beside error and hashes."""
    derive = config.derive
    facts: dict[str, Any] = {
        "teacher": teacher.kind,
        "weights_sha256": teacher.weights_sha256,
        "teacher_width": teacher.width,
        "width": derive.pca_width or teacher.width,
        "form": derive.form,
        "dtype": derive.pca_storage if derive.form == "pca" else derive.form,
        "batch_residues": derive.batch_residues,
    }
    if derive.form == "pca":
        facts["pca_residues"] = derive.pca_residues
    return facts


@contextmanager
def _runner(config: TrainConfig, column: _Column) -> Iterator[Run]:
    """Runs tasks in this process, or on the actors of a Ray cluster."""
    wanted, on_cluster = config.derive.num_workers, config.engine.address or os.environ.get("RAY_ADDRESS")
    small = column.residues < SMALL_RESIDUES or (column.num_shards == 1 and not on_cluster)
    if wanted == 1 or (wanted is None and small) or column.num_shards == 1:
        worker = ShardWorker(column.settings)
        try:
            yield lambda tasks: map(worker, tasks)
        finally:
            worker.close()
        return
    workers = min(wanted, column.num_shards) if wanted else 1
    with ray_cluster(EngineConfig(num_workers=workers, address=config.engine.address)):
        size = _pool_size(wanted, column.num_shards)
        log.info("%d Ray actors, %s each", size.actors, f"{size.gpus_each} GPU" if size.gpus_each else "1 CPU")
        with Pool(open_worker, column.settings, size, lambda task: f"{column.folder.name}: shard {task.name}") as pool:
            yield pool.run


def _pool_size(wanted: int | None, num_shards: int) -> PoolSize:
    """One actor per GPU where the cluster has any, else per CPU; never more than wanted, or than shards."""
    import ray

    have = ray.cluster_resources()
    gpus = int(have.get("GPU", 0))
    room = gpus or int(have.get("CPU", 1))
    return PoolSize(max(min(wanted or room, room, num_shards), 1), gpus_each=1 if gpus else 0)


def _remove(folder: Path) -> None:
    """Remove the folder, though a last worker of a killed run may still be writing into it."""
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)
