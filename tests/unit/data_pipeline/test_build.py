"""The whole build through Ray: reproducible, resumable, strict about where it writes."""

import fcntl
import json
import os
from pathlib import Path
from typing import Any

import pytest

from configs.build import BuildConfig, ShardConfig
from configs.errors import UserError
from configs.source import SourceConfig, SyntheticConfig
from configs.splits import LeakageConfig, SplitConfig
from data_pipeline import build as build_module
from data_pipeline.audit import audit
from data_pipeline.build import build, run_build
from data_pipeline.manifest import Manifest
from data_pipeline.reader import ShardReader
from data_pipeline.synthetic.entries import write_synthetic
from tests.unit.data_pipeline.structure.models import as_dna, gemmi_structure, helix, mmcif_bytes, pdb_bytes

pytestmark = pytest.mark.usefixtures("ray_cluster")

SMALL = SyntheticConfig(num_folds=2, families_per_fold=2, members_per_family=3, max_residues=80)


def dna_only() -> bytes:
    """A PDB entry with one strand of DNA."""
    return pdb_bytes(as_dna(gemmi_structure({"A": ("A" * 10, helix(10))})))


def truncated_mmcif() -> bytes:
    """An mmCIF file whose download broke off at three quarters."""
    whole = mmcif_bytes(gemmi_structure({"A": ("ACDEFGHIKL" * 4, helix(40))}))
    return whole[: len(whole) * 3 // 4]


BAD_FILES = {
    "empty.pdb": (b"", "empty_file"),
    "page.pdb": (b"<!DOCTYPE html><html><body>404</body></html>", "not_a_structure"),
    "cut.cif": (truncated_mmcif(), "truncated"),
    "dna.pdb": (dna_only(), "no_protein"),
}


@pytest.fixture(scope="module")
def structures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve synthetic entries and the bad files."""
    folder = tmp_path_factory.mktemp("structures")
    write_synthetic(SMALL, folder)
    for name, (content, _) in BAD_FILES.items():
        (folder / name).write_bytes(content)
    return folder


def configured(structures: Path, output: Path, **changes: Any) -> BuildConfig:
    settings: dict[str, Any] = {
        "source": SourceConfig(kind="files", path=structures),
        "split": SplitConfig(method="kmers"),
        "shards": ShardConfig(samples_per_shard=4),
        "structures_per_task": 4,
        "output": output,
    }
    return BuildConfig(**{**settings, **changes})


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def built(structures: Path, tmp_path_factory: pytest.TempPathFactory, ray_cluster: str) -> Path:
    output = tmp_path_factory.mktemp("built") / "shards"
    build(configured(structures, output))
    return output


def test_a_build_is_complete_sound_and_leaves_no_temporary_file(built: Path) -> None:
    report = audit(built)
    assert not report.damage
    assert report.manifest is not None
    names = {p.name for p in built.iterdir()}
    expected = {"manifest.json", "rejects.jsonl", "inputs.json"}
    shards = [shard for split in report.manifest.splits.values() for shard in split.shards]
    assert names == expected | {name for shard in shards for name in (shard.name, shard.index)}
    assert all(report.manifest.splits[split].samples for split in ("train", "validation", "test"))


def test_bad_files_are_listed_with_their_reason_and_counted(built: Path) -> None:
    with ShardReader(built) as reader:
        manifest = reader.manifest
    rejects = [json.loads(line) for line in (built / "rejects.jsonl").read_text().splitlines()]
    reasons = {r["path"]: r["reason"] for r in rejects if r["path"] in BAD_FILES}
    assert reasons == {name: reason for name, (_, reason) in BAD_FILES.items()}
    assert manifest.chains == manifest.kept + len(rejects)
    assert sum(manifest.dropped.values()) == len(rejects)
    assert manifest.kept == sum(split.samples for split in manifest.splits.values())


def test_other_workers_and_batches_give_the_same_shards(structures: Path, built: Path, tmp_path: Path) -> None:
    build(configured(structures, tmp_path / "one", num_workers=1))
    assert contents(tmp_path / "one") == contents(built)
    build(configured(structures, tmp_path / "batches", structures_per_task=5))
    one, batches = contents(tmp_path / "one"), contents(tmp_path / "batches")
    assert {n: b for n, b in one.items() if n.endswith((".tar", ".npy"))} == {
        n: b for n, b in batches.items() if n.endswith((".tar", ".npy"))
    }


def test_a_finished_build_is_up_to_date_until_something_changes(structures: Path, built: Path) -> None:
    config = configured(structures, built)
    before = {p: p.stat().st_mtime_ns for p in built.iterdir()}
    outcome = run_build(config)
    assert outcome.up_to_date
    assert {p: p.stat().st_mtime_ns for p in built.iterdir()} == before
    whole = contents(built)
    (built / "train-000000.tar").unlink()
    assert not run_build(config).up_to_date
    assert contents(built) == whole


def test_a_changed_input_file_is_noticed(tmp_path: Path) -> None:
    structures, output = tmp_path / "in", tmp_path / "out"
    write_synthetic(
        SyntheticConfig(num_folds=1, families_per_fold=1, members_per_family=2, max_residues=70), structures
    )
    config = configured(structures, output)
    assert not run_build(config).up_to_date
    changed = sorted(structures.glob("*.gz"))[0]
    os.utime(changed, ns=(1, 1))
    assert not run_build(config).up_to_date
    assert run_build(config).up_to_date


def test_another_config_replaces_every_shard_of_the_last_one(structures: Path, tmp_path: Path) -> None:
    first = build(configured(structures, tmp_path / "out", shards=ShardConfig(samples_per_shard=2)))
    second = build(configured(structures, tmp_path / "out", split=SplitConfig(method="kmers", seed=1)))
    assert first != second
    assert not audit(tmp_path / "out").damage


def test_an_interrupted_build_parses_only_what_is_missing(
    structures: Path, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(structures, tmp_path / "out")

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build_module, "_write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build(config)
    (spooled, *_) = sorted((tmp_path / "out/.work/parsed").glob("*.arrow"))
    spooled.unlink()
    with pytest.raises(UserError, match="no finished build"):
        ShardReader(tmp_path / "out")
    outcome = run_build(config)
    # Fourteen entries in batches of four are four batches, of which one was lost.
    assert outcome.resumed_batches == 3
    assert contents(tmp_path / "out") == contents(built)


def test_an_entry_that_could_not_be_read_is_tried_again_by_the_next_run(
    structures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    for path in sorted(structures.glob("*.cif.gz"))[:6]:
        (tmp_path / "in" / path.name).write_bytes(path.read_bytes())
    # Listed, but not to be read.
    (tmp_path / "in" / "lost.cif").symlink_to(tmp_path / "nowhere.cif")
    config = configured(tmp_path / "in", tmp_path / "out")

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build_module, "_write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build(config)
    outcome = run_build(config)
    # Of two batches the one without the lost file is kept.
    assert outcome.resumed_batches == 1
    assert outcome.manifest.dropped["unreadable"] == 1


def test_a_changed_membership_file_makes_other_shards(structures: Path, tmp_path: Path) -> None:
    table = tmp_path / "clusters.tsv"
    keys = [path.name.removesuffix(".cif.gz") for path in sorted(structures.glob("*.cif.gz"))]
    table.write_text("".join(f"one\t{key}\n" for key in keys))
    settings = {"split": SplitConfig(method="membership", membership=table)}
    first = build(configured(structures, tmp_path / "out", **settings))
    assert first.leakage.clustering["method"] == "membership"
    assert first.splits["train"].samples == first.kept
    table.write_text("".join(f"{number}\t{key}\n" for number, key in enumerate(keys)))
    second = build(configured(structures, tmp_path / "out", **settings))
    assert second.leakage.clustering["clusters"] > 1
    assert second.splits["test"].samples > 0


def test_chains_like_an_evaluation_set_are_reported_or_excluded(structures: Path, built: Path, tmp_path: Path) -> None:
    with ShardReader(built) as reader:
        planted = reader.sample("train", 0)
    (tmp_path / "eval.fasta").write_text(f">planted\n{planted.sequence}\n")
    against = {"against": (str(tmp_path / "eval.fasta"),), "method": "kmers"}
    reported = build(configured(structures, tmp_path / "report", leakage=LeakageConfig(**against)))
    assert reported.leakage.against[0]["chains_hit"] >= 1
    assert "leakage" not in reported.dropped
    excluding = LeakageConfig(**against, action="exclude")
    excluded = build(configured(structures, tmp_path / "exclude", leakage=excluding))
    assert excluded.dropped["leakage"] >= 1
    rejects = [json.loads(line) for line in (tmp_path / "exclude/rejects.jsonl").read_text().splitlines()]
    assert any(r["path"] == planted.facts["source"] and "planted" in r["detail"] for r in rejects)
    with ShardReader(tmp_path / "exclude") as reader:
        kept = {reader.key("train", i) for i in range(len(reader.index("train")))}
    assert planted.key not in kept
    assert not audit(tmp_path / "exclude").damage


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": SplitConfig(method="membership", membership=Path("nowhere.tsv"))}, r"nowhere\.tsv: cannot be read"),
        ({"leakage": LeakageConfig(against=("nowhere.fasta",))}, r"nowhere\.fasta: cannot be read"),
        ({"split": SplitConfig(method="mmseqs")}, "mmseqs is not on the PATH"),
    ],
)
def test_what_the_split_pass_lacks_is_told_before_anything_is_parsed(
    structures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], message: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=message):
        build(configured(structures, tmp_path / "out", **settings))
    assert not (tmp_path / "out").exists()


def test_no_usable_chain_is_a_user_error_that_tells_why(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/empty.pdb").write_bytes(b"")
    with pytest.raises(UserError, match=r"no usable chain in 1 entries .*1 empty_file.*empty\.pdb"):
        build(configured(tmp_path / "in", tmp_path / "out"))


def test_a_folder_that_holds_something_else_is_refused(structures: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds 1 other files \(e\.g\. manifest\.json\)"):
        build(configured(structures, tmp_path))
    assert (tmp_path / "manifest.json").read_text() == "{}"


def test_two_builds_do_not_write_to_one_folder(structures: Path, tmp_path: Path) -> None:
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="another build is writing there"):
        build(configured(structures, tmp_path))
    os.close(handle)


def test_synthetic_structures_are_written_beside_the_shards(tmp_path: Path) -> None:
    small = SyntheticConfig(num_folds=1, families_per_fold=3, members_per_family=1, max_residues=70)
    split = SplitConfig(method="kmers")
    config = BuildConfig(source=SourceConfig(synthetic=small), split=split, output=tmp_path / "shards")
    manifest = build(config)
    assert isinstance(manifest, Manifest)
    assert len(list((tmp_path / "shards.structures").glob("*.cif.gz"))) == 3
    assert manifest.splits["test"].samples >= 1
