"""The model card of a release: YAML front matter that the hub reads, then text for people."""

from huggingface_hub import EvalResult, ModelCardData

from configs.labels import metric_label
from configs.train import TrainConfig
from configs.trunk import AMPLIFY_SIZES, ESM2_SIZES, ESMC_SIZES
from eval.report import environment
from eval.results import Result, Results
from eval.tables import format_estimate
from pretrain.checkpoints import Checkpoint
from pretrain.model.alignment import AlignmentModel

_METRIC_TYPES = {"pseudo_perplexity": "perplexity", "accuracy": "accuracy", "q3": "accuracy"}
_WITHOUT_MODEL = frozenset({"threedi_lookup", "threedi_majority"})
"""Baselines: in the table for comparison, but no results of the model."""


def render_card(
    checkpoint: Checkpoint,
    results: Results,
    model: AlignmentModel,
    has_contacts: bool,
    repo: str | None,
    license_name: str,
) -> str:
    """README.md of the release."""
    config = checkpoint.config
    name = repo.split("/")[-1] if repo else config.name
    parameters = sum(p.numel() for p in model.trunk.parameters())
    data = ModelCardData(
        license=license_name,
        library_name="transformers",
        pipeline_tag="fill-mask",
        tags=["biology", "protein", "protein-language-model", "protein-structure", "3di"],
        base_model=_base_model(config),
        model_name=name,
        eval_results=[_eval_result(r, results) for r in results.results if r.task not in _WITHOUT_MODEL],
    )
    return (
        environment()
        .get_template("card.md.j2")
        .render(
            front_matter=data.to_yaml(),
            name=name,
            location=repo or ".",
            config=config,
            family=model.trunk.shape.family,
            trunk=results.trunk,
            million_parameters=f"{parameters / 1e6:.1f}",
            step=checkpoint.step,
            results=results,
            rows=[
                (metric_label(r.task, r.metric), format_estimate(r), r.num_examples, r.num_clusters)
                for r in results.results
            ],
            has_contacts=has_contacts and model.trunk.shape.family == "esm2",
            has_threedi=bool(model.losses.structure),
            has_contrast=bool(model.losses.contrast),
            training_shards=results.training_manifest_sha256,
            is_held_out=results.training_manifest_sha256 == results.manifest_sha256,
            weights_sha256=checkpoint.weights_sha256,
        )
    )


def _base_model(config: TrainConfig) -> str | None:
    """The hub's name of the published model that training started from."""
    if config.trunk is None or config.trunk.weights is None:
        return None
    if config.trunk.model in ESM2_SIZES:
        return f"facebook/{config.trunk.model}"
    if config.trunk.model in ESMC_SIZES:
        return f"biohub/{config.trunk.model.replace('_', '-')}"
    return f"chandar-lab/{config.trunk.model}" if config.trunk.model in AMPLIFY_SIZES else None


def _eval_result(result: Result, results: Results) -> EvalResult:
    return EvalResult(
        task_type=result.task.replace("_", "-"),
        task_name="contact prediction" if result.task == "contact" else metric_label(result.task, result.metric),
        dataset_type="protein-structures",
        dataset_name="held-out protein chains",
        dataset_split=result.split,
        dataset_revision=results.manifest_sha256,
        metric_type=_METRIC_TYPES.get(result.metric, "precision"),
        metric_name=f"{result.metric} (task version {result.task_version})",
        metric_value=round(result.value, 6),
    )
