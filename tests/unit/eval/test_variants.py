"""Zero-shot scores of mutations: sums of log-odds, wild types scored once, and the means over assays."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from configs.benchmarks import BenchmarksConfig, VariantsConfig
from configs.errors import UserError
from configs.evaluate import EvalConfig
from data_pipeline.shards import write_shards
from eval.datasets.variants import Assay, Collected
from eval.features import Features
from eval.intervals import estimate
from eval.metrics import spearman
from eval.tasks import variants
from eval.tasks.protocol import Context, Outcome
from eval.tasks.variants import CLINICAL_VARIANTS, MUTATION_EFFECT, STABILITY_DDG, chosen_assays, score_variants
from tests.unit.eval.makers import make_protein_model, make_sample, train_config

SEQUENCE = "MKTAYIAKQRQISFVKSHFSRQ"


@pytest.fixture
def model(tmp_path: Path):
    return make_protein_model(train_config(tmp_path, tmp_path))


def assay(key: str, names: list[str], scores: list[float], sequence: str = SEQUENCE, category: str = "") -> Assay:
    collected = Collected()
    collected.add(key, key.split("_", maxsplit=1)[0], category, sequence, names, scores)
    return collected.assays[0]


def config(**fields: object) -> EvalConfig:
    return EvalConfig(variants=VariantsConfig(**fields), batch_tokens=256)


@pytest.mark.parametrize("scoring", ["masked", "wildtype"])
def test_a_variants_score_is_the_sum_of_its_log_odds(scoring: str, model) -> None:
    found = score_variants(model, [assay("a", ["K2A", "K2A:T3C", "Q22W"], [0, 1, 2])], config(scoring=scoring))[0]
    unmasked = model.log_probs([SEQUENCE])[0]

    def odds(position: int, wild: str, mutant: str) -> float:
        if scoring == "wildtype":
            row = unmasked[position]
        else:
            row = model.masked_log_probs([(SEQUENCE, np.array([position]))])[0][0]
        return float(row["ACDEFGHIKLMNPQRSTVWY".index(mutant)] - row["ACDEFGHIKLMNPQRSTVWY".index(wild)])

    expected = [odds(1, "K", "A"), odds(1, "K", "A") + odds(2, "T", "C"), odds(21, "Q", "W")]
    # float32 log-probabilities of the same passes in other batches.
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found).min() > 1e-4


def test_each_wild_type_is_scored_once_at_every_position_asked(model, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = variants.marginal_tables

    def counted(model, jobs, *arguments):
        asked.extend((job.sequence, job.positions.tolist()) for job in jobs)
        return real(model, jobs, *arguments)

    monkeypatch.setattr(variants, "marginal_tables", counted)
    other = "ACDEFGHIKLMNPQRSTVWY"
    first, second = assay("a", ["K2A", "T3C"], [0, 1]), assay("b", ["K2A", "A4C"], [0, 1])
    third = assay("c", ["C2A"], [0], other)
    found = score_variants(model, [first, second, third], config())
    assert asked == [(SEQUENCE, [1, 2, 3]), (other, [1])]
    assert found[0][0] == found[1][0]


def context_of(model, found_in: Path | str = "", **fields: object) -> Context:
    settings = EvalConfig(
        variants=VariantsConfig(**fields),
        benchmarks=BenchmarksConfig(sources=dict.fromkeys(("proteingym", "clinical", "ddg"), str(found_in))),
        batch_tokens=256,
    )
    return Context(settings, None, None, Features(model, batch_tokens=256))


def value_of(outcome: Outcome, metric: str) -> float:
    (measurement,) = (m for m in outcome.measurements if m.metric == metric)
    return estimate([measurement], 100, 0).value


def test_means_over_assays_are_those_of_the_benchmark() -> None:
    rows = [("P1_a", "Activity", 0.2), ("P1_b", "Activity", 0.4), ("P1_c", "Stability", 0.9)]
    rows += [("P2_a", "Activity", 0.8), ("P3_a", "Stability", 0.1)]
    assays = [assay(key, ["K2A"], [0.0], category=category) for key, category, _ in rows]
    outcome = Outcome(tuple(variants.mutation_measurements(assays, np.array([value for _, _, value in rows]))))
    assert value_of(outcome, "spearman") == pytest.approx(np.mean([0.2, 0.4, 0.9, 0.8, 0.1]))
    activity, stability = (np.mean([0.2, 0.4]) + 0.8) / 2, (0.9 + 0.1) / 2
    assert value_of(outcome, "spearman_Activity") == pytest.approx(activity)
    assert value_of(outcome, "spearman_Stability") == pytest.approx(stability)
    assert value_of(outcome, "spearman_official") == pytest.approx((activity + stability) / 2)
    measured = {m.metric: m for m in outcome.measurements}
    assert set(measured) == {"spearman", "spearman_official", "spearman_Activity", "spearman_Stability"}
    # Assays of one protein are resampled together.
    assert measured["spearman"].clusters.tolist() == [0, 0, 0, 1, 2]


def write_scans(folder: Path, scores: dict[str, list[float]]) -> None:
    (folder / "DMS_ProteinGym_substitutions").mkdir(parents=True)
    reference = ["DMS_id,DMS_filename,UniProt_ID,target_seq,coarse_selection_type"]
    names = ("K2A", "T3C", "A4W", "Y5D", "I6P")
    for key, values in scores.items():
        reference.append(f"{key},{key}.csv,{key.split('_')[0]},{SEQUENCE},Activity")
        text = "".join(f"{name},{value}\n" for name, value in zip(names, values, strict=True))
        (folder / "DMS_ProteinGym_substitutions" / f"{key}.csv").write_text("mutant,DMS_score\n" + text)
    (folder / "DMS_substitutions.csv").write_text("\n".join(reference) + "\n")


def test_the_task_reports_assays_and_drops_constant_ones(model, tmp_path: Path) -> None:
    write_scans(tmp_path / "gym", {"A_1": [1, 2, 3, 4, 5], "B_1": [7, 7, 7, 7, 7], "C_1": [5, 1, 4, 2, 3]})
    context = context_of(model, tmp_path / "gym")
    outcome = MUTATION_EFFECT.run(context)
    (scores,) = score_variants(model, [assay("A_1", ["K2A", "T3C", "A4W", "Y5D", "I6P"], [1, 2, 3, 4, 5])], config())
    measured = next(m for m in outcome.measurements if m.metric == "spearman")
    assert measured.keys == ("A_1", "C_1")
    expected = [spearman(scores, np.array(label)) for label in ([1, 2, 3, 4, 5], [5, 1, 4, 2, 3])]
    np.testing.assert_allclose(measured.columns["values"], expected, atol=1e-12)
    assert any("B_1" in remark for remark in outcome.remarks)
    assert any("3 assays of 1 wild types" in remark for remark in outcome.remarks)
    facts = MUTATION_EFFECT.facts(context)
    assert "masked" in facts.method
    assert facts.data_sha256
    assert {m.metric for m in outcome.measurements} <= set(MUTATION_EFFECT.metrics)


def test_a_limit_of_assays_is_drawn_once_and_said(model, tmp_path: Path) -> None:
    write_scans(tmp_path / "gym", {f"{name}_1": [1, 2, 3, 4, 5] for name in "ABCDEF"})
    outcome = MUTATION_EFFECT.run(context_of(model, tmp_path / "gym", max_assays=2))
    assert len(outcome.measurements[0].keys) == 2
    assert any("2 of 6 assays" in remark for remark in outcome.remarks)
    assays = [assay(f"{i}", ["K2A"], [0]) for i in range(6)]
    assert [a.key for a in chosen_assays(assays, 2, 0)] == [a.key for a in chosen_assays(assays, 2, 0)]
    assert chosen_assays(assays, None, 0) == assays


def test_clinical_variants_are_ranked_over_all_proteins_and_in_each(model, tmp_path: Path) -> None:
    folder = tmp_path / "clinical_ProteinGym_substitutions"
    folder.mkdir()
    (tmp_path / "clinical_substitutions.csv").write_text(
        f"DMS_id,target_seq,DMS_filename\nNP_1,{SEQUENCE},NP_1.csv\nNP_2,{SEQUENCE},NP_2.csv\n"
    )
    head = "protein,protein_sequence,mutant,mutated_sequence,DMS_bin_score\n"
    rows = [("K2A", "Pathogenic"), ("T3C", "Benign"), ("A4W", "Benign")]
    (folder / "NP_1.csv").write_text(head + "".join(f"NP_1,,{name},,{label}\n" for name, label in rows))
    (folder / "NP_2.csv").write_text(head + "NP_2,,Y5D,,Pathogenic\n")
    outcome = CLINICAL_VARIANTS.run(context_of(model, tmp_path))
    scores = score_variants(model, [assay("a", ["K2A", "T3C", "A4W", "Y5D"], [0, 1, 2, 3])], config())[0]
    pathogenic, benign = scores[[0, 3]], scores[[1, 2]]
    wins = (benign[:, None] > pathogenic[None, :]).mean()
    assert value_of(outcome, "auroc") == pytest.approx(wins)
    assert value_of(outcome, "auroc_by_protein") == pytest.approx((benign > pathogenic[0]).mean())
    assert any("NP_2" in remark for remark in outcome.remarks)


def test_stability_counts_small_proteins_in_the_pooled_correlation_alone(model, tmp_path: Path) -> None:
    head = "uniprot_id,pdb_id_corrected,pdb_sequence,pdb_position,wild_type,mutation,ddG\n"
    rows = [("P1", "1PGA", i, SEQUENCE[i], "W", 0.1 * (i % 7)) for i in range(12)]
    rows += [("P2", "2LZM", i, SEQUENCE[i], "G", -0.3 * i) for i in range(3)]
    text = "".join(
        f"{p},{k},{SEQUENCE if k == '1PGA' else SEQUENCE + 'A'},{i},{w},{m},{d}\n" for p, k, i, w, m, d in rows
    )
    (tmp_path / "fireprot_train.csv").write_text(head + text)
    outcome = STABILITY_DDG.run(context_of(model, tmp_path))
    pooled, by_protein = outcome.measurements
    assert pooled.rows.tolist() == [12, 3]
    assert by_protein.keys == ("1PGA",)
    within = spearman(pooled.columns["prediction"][:12], pooled.columns["label"][:12])
    assert by_protein.columns["values"].tolist() == pytest.approx([within])
    assert any("1 proteins with fewer than 10" in remark for remark in outcome.remarks)


def test_wild_types_that_training_saw_are_told_or_dropped(model, tmp_path: Path) -> None:
    sequence = "".join(np.random.default_rng(0).choice(list("ACDEFGHIKLMNPQRSTVWY"), size=60))
    folder = tmp_path / "gym" / "DMS_ProteinGym_substitutions"
    folder.mkdir(parents=True)
    reference = ["DMS_id,DMS_filename,UniProt_ID,target_seq,coarse_selection_type"]
    for key, wild_type in (("A_1", SEQUENCE), ("B_1", sequence)):
        reference.append(f"{key},{key}.csv,{key[0]},{wild_type},Activity")
        names = [f"{wild_type[i]}{i + 1}{'W' if wild_type[i] != 'W' else 'A'}" for i in range(5)]
        rows = [f"{name},{value}" for name, value in zip(names, (1, 3, 2, 5, 4), strict=True)]
        (folder / f"{key}.csv").write_text("\n".join(["mutant,DMS_score", *rows]) + "\n")
    (tmp_path / "gym" / "DMS_substitutions.csv").write_text("\n".join(reference) + "\n")
    seen = replace(make_sample("t_A", 0, seed=0, num_residues=60), sequence=sequence)
    write_shards(tmp_path / "shards", {"train": [seen]}, samples_per_shard=4)
    context = context_of(model, tmp_path / "gym")

    def outcome(**changes: object) -> Outcome:
        benchmarks = context.config.benchmarks.model_copy(update={"training_shards": tmp_path / "shards", **changes})
        config = context.config.model_copy(update={"benchmarks": benchmarks})
        return MUTATION_EFFECT.run(replace(context, config=config))

    flagged, dropped = outcome(leakage="flag"), outcome(leakage="drop")
    for found, keys, end in ((flagged, ("A_1", "B_1"), "flagged"), (dropped, ("A_1",), "dropped")):
        assert found.remarks[0].startswith("leakage: 1 of 2 test records resemble one of 1 training chains")
        assert found.remarks[0].endswith(end)
        assert found.measurements[0].keys == keys
    assert outcome(leakage="off").remarks[0] == "leakage: not checked (benchmarks.leakage=off)"
    with pytest.raises(UserError, match="the training shards are not known"):
        outcome(leakage="drop", training_shards=None)
