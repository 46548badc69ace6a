"""How a head is fitted, in words that make a number readable years later."""

from configs.benchmarks import ProbeConfig
from configs.evaluate import EvalConfig
from eval.datasets.records import Target
from eval.heads.inputs import RESIDUE_TARGETS
from eval.heads.linear import LOGISTIC_STRENGTHS, RIDGE_STRENGTHS
from eval.heads.losses import LOSSES

_LINEAR = {
    "softmax": "multinomial logistic regression",
    "sigmoid": "one-vs-rest logistic regression",
    "squared": "ridge regression",
}
_LOSS_WORDS = {"softmax": "cross entropy", "sigmoid": "sigmoid cross entropy of each label", "squared": "squared error"}


def described(probe: ProbeConfig, config: EvalConfig, target: Target) -> tuple[str, str]:
    """What stays frozen, and what is fitted on what."""
    inputs = _inputs(probe, config, target)
    seeds = ", ".join(map(str, probe.seeds))
    if probe.protocol == "frozen" and probe.head == "linear":
        grid = RIDGE_STRENGTHS if LOSSES[target] == "squared" else LOGISTIC_STRENGTHS
        head = f"{_LINEAR[LOSSES[target]]} on standardised {inputs}, L2 strength of {min(grid):g} to {max(grid):g}"
        return "trunk", head
    layers = probe.layers if probe.head == "mlp" else 1
    shape = "linear layer" if layers == 1 else f"{layers}-layer MLP of width {probe.hidden}, dropout {probe.dropout:g}"
    how = (
        f"{shape} on standardised {inputs}, {_LOSS_WORDS[LOSSES[target]]}, AdamW, learning rate "
        f"{probe.learning_rate:g}, weight decay {probe.weight_decay:g}, batches of {probe.batch_size}, at most "
        f"{probe.epochs} epochs, patience {probe.patience}, seeds {seeds}"
    )
    if probe.protocol == "frozen":
        return "trunk", how
    kept = "nothing" if probe.protocol == "full" else f"trunk but for LoRA adapters of rank {probe.lora_rank}"
    return kept, f"{how}; trunk learning rate {probe.trunk_learning_rate:g}, warm-up then linear decay"


def _inputs(probe: ProbeConfig, config: EvalConfig, target: Target) -> str:
    layers = "final" if config.features.representation == "last" or probe.protocol != "frozen" else "all layers'"
    if target in RESIDUE_TARGETS:
        return f"{layers} residue states of at most {config.benchmarks.max_train_residues:,} residues of whole proteins"
    words = f"{layers} states averaged over residues"
    if layers != "final":
        words += ", centred and scaled to length 1"
    return f"[|a - b|, a * b, a + b] of both proteins' {words}" if target == "pair_class" else words
