"""A release: a folder that `transformers` loads, with heads, results and card; verified before it gets its name."""

import hashlib
import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from configs.errors import UserError
from configs.losses import LossConfig
from data_pipeline.structure.chain import THREEDI_STATES
from eval.card import render_card
from eval.results import REGRESSION_FILE, RESULTS_FILE, Results, read_results
from pretrain.batch import Packed
from pretrain.checkpoints import Checkpoint, open_checkpoint
from pretrain.model.alignment import AlignmentModel
from pretrain.model.contacts import ContactRegression, predict_contacts, read_contact_regression
from pretrain.model.export import write_huggingface_folder
from pretrain.model.load import load_model

FORMAT_VERSION = "1.0"
MANIFEST_FILE = "release.json"
HEADS_FILE = "heads.safetensors"
HEADS_FACTS = "heads.json"
CARD_FILE = "README.md"
TOLERANCE = 1e-5
"""Largest difference of logits between this project's model and the folder, relative to the largest logit (or 1)."""
_HIDDEN_STATES = {
    "esm2": "after the final LayerNorm (last_hidden_state of EsmModel)",
    "esmc": "after the final LayerNorm (last_hidden_state of EsmcModel)",
    "amplify": "output of the last layer, before the final RMSNorm",
}
_PROBES = ("MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQ", "GSHMACDEFGHIKLMNPQRSTVWYX", "M")
"""Sequences on which the written folder is compared with the checkpoint: every residue type, and the shortest chain."""
log = logging.getLogger("eval")


@dataclass(frozen=True)
class Release:
    """A written and verified release folder."""

    folder: Path
    num_files: int
    num_bytes: int
    verified: str
    """What was checked, in one line."""


def write_release(
    checkpoint_path: Path, results_path: Path, folder: Path, repo: str | None, license_name: str
) -> Release:
    """Write, verify and only then put in place; a folder that fails its checks never gets the final name.

    Raises:
        UserError: results of other weights, a folder with something else in it, or logits that differ.
    """
    checkpoint = open_checkpoint(checkpoint_path)
    results, source = results_for(checkpoint, results_path)
    _check_replaceable(folder)
    model = load_model(checkpoint)
    partial = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        regression = _regression(source)
        write_huggingface_folder(model.trunk, partial, regression)
        write_heads(model, checkpoint, partial)
        shutil.copyfile(source / RESULTS_FILE, partial / RESULTS_FILE)
        card = render_card(checkpoint, results, model, regression is not None, repo, license_name)
        (partial / CARD_FILE).write_text(card)
        verified = verify_release(model, partial, regression)
        files = _write_manifest(partial, checkpoint)
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Release(folder, len(files) + 1, sum(f["bytes"] for f in files.values()), verified)


def results_for(checkpoint: Checkpoint, path: Path) -> tuple[Results, Path]:
    """Results of exactly these weights and their folder; `path` is a file, its folder, or a folder of `step_*`.

    Raises:
        UserError: no results there, or only those of other weights.
    """
    candidates = [path.parent if path.is_file() else path]
    if path.is_dir() and not (path / RESULTS_FILE).is_file():
        candidates = sorted(file.parent for file in path.glob(f"step_*/{RESULTS_FILE}"))
    found = [(read_results(folder), folder) for folder in candidates]
    for results, folder in found:
        if results.weights_sha256 == checkpoint.weights_sha256:
            return results, folder
    got = ", ".join(f"step {r.step} {r.weights_sha256[:12]}" for r, _ in found) or "none"
    raise UserError(
        f"results {path}: of other weights (got {got}) than checkpoint {checkpoint.path} (step {checkpoint.step} "
        f"{checkpoint.weights_sha256[:12]}); evaluate it with `python -m eval run {checkpoint.path} CONFIG`"
    )


def write_heads(model: AlignmentModel, checkpoint: Checkpoint, folder: Path) -> None:
    """Heads outside the trunk as heads.safetensors, and what they are as heads.json."""
    state = {name: t.detach().clone() for name, t in model.state_dict().items() if not name.startswith("trunk.")}
    if state:
        save_file(state, folder / HEADS_FILE, metadata={"format": "pt"})
    facts = {
        "format_version": FORMAT_VERSION,
        "input": "hidden state of every residue (special tokens left out), divided by its Euclidean length",
        "hidden_state": _HIDDEN_STATES[model.trunk.shape.family],
        "tensors": {name: list(tensor.shape) for name, tensor in sorted(state.items())},
        "heads": _head_facts(model, checkpoint),
    }
    (folder / HEADS_FACTS).write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")


def verify_release(model: AlignmentModel, folder: Path, regression: ContactRegression | None = None) -> str:
    """Load the folder as a user would and compare tokens, logits and contacts with the checkpoint's.

    Raises:
        UserError: a tensor is empty or not finite, tokens differ, or logits differ by more than TOLERANCE.
    """
    _check_tensors(folder)
    # Only here and in the hub's own environment is transformers needed.
    from transformers import AutoModelForMaskedLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    loaded = AutoModelForMaskedLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    worst = 0.0
    for sequence in _PROBES:
        tokens = _tokens(model, sequence)
        theirs = tokenizer(sequence, return_tensors="pt")
        if theirs["input_ids"][0].tolist() != tokens.tolist():
            raise UserError(f"release {folder.name}: the tokenizer gives other tokens for {sequence[:12]}...")
        for ids in (tokens, tokens.index_fill(0, torch.tensor([1]), model.trunk.shape.alphabet.mask_id)):
            worst = max(worst, _difference(model, loaded, ids))
    if regression is not None and model.trunk.shape.family == "esm2":
        # Only explicit attention gives the maps that contacts are made of.
        loaded.set_attn_implementation("eager")
        worst = max(worst, _contact_difference(model, loaded, _tokens(model, _PROBES[0]), regression))
    if worst > TOLERANCE:
        raise UserError(
            f"release {folder.name}: logits or contacts of the written model differ by {worst:.1e} "
            f"(allowed {TOLERANCE:.0e}); nothing was released"
        )
    return (
        f"AutoModelForMaskedLM ({type(loaded).__name__}) gives the checkpoint's answers on {len(_PROBES)} sequences "
        f"(difference at most {worst:.1e}), tokens equal, no empty tensor"
    )


def push_release(folder: Path, repo: str) -> str:
    """Upload the folder to the hub; returns its address.

    Raises:
        UserError: no token, no network, or no right to write there.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    check_push(repo)
    step = json.loads((folder / MANIFEST_FILE).read_text())["step"]
    try:
        api = HfApi()
        api.create_repo(repo, exist_ok=True)
        info = api.upload_folder(repo_id=repo, folder_path=folder, commit_message=f"Release of step {step}")
    except (HfHubHTTPError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"--push to {repo} failed ({reason}); check the network and that the token may write there. The folder "
            f"{folder} is complete and can be uploaded later"
        ) from None
    return str(info.commit_url)


def check_push(repo: str | None) -> None:
    """Whether an upload can be tried at all, before anything is written.

    Raises:
        UserError: no repository, a wrong form of it, or no token.
    """
    from huggingface_hub import get_token

    if repo is None:
        raise UserError("--push needs --repo ORG/NAME")
    if len(repo.split("/")) != 2 or not all(repo.split("/")):
        raise UserError(f"--repo {repo!r}: allowed form is ORG/NAME, e.g. my-lab/my-model")
    if not get_token():
        raise UserError("--push: no token for the hub; set HF_TOKEN or run `hf auth login`")


def sha256_of(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_replaceable(folder: Path) -> None:
    if folder.exists() and not (folder / MANIFEST_FILE).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"output {folder}: holds something other than a release; name an empty or a new folder")


def _regression(source: Path) -> ContactRegression | None:
    path = source / REGRESSION_FILE
    return read_contact_regression(path) if path.is_file() else None


def _head_facts(model: AlignmentModel, checkpoint: Checkpoint) -> dict[str, object]:
    facts: dict[str, object] = {}
    losses = model.losses
    if losses.structure:
        facts["threedi_head"] = {
            "what": "3Di state of a residue: out(relu(dense(input))), then softmax over states",
            "states": THREEDI_STATES,
        }
    if losses.contrast:
        config = checkpoint.config
        for number, teacher in enumerate((config.teacher, *config.more_teachers)):
            # As the parameters in heads.safetensors are named.
            before = f"more_projections.{number - 1}." if number else ""
            facts |= {f"{before}{name}": words for name, words in _projection_facts(teacher.kind, losses).items()}
    return facts


def _projection_facts(teacher: str, losses: LossConfig) -> dict[str, dict[str, object]]:
    return {
        "sequence_projection": {
            "what": "linear(input), divided by its Euclidean length: the residue's place in the shared space"
        },
        "structure_projection": {
            "what": "linear(teacher embedding), divided by its Euclidean length",
            "teacher": teacher,
        },
        "temperature": {
            "what": "similarity = min(exp(logit_scale), maximum) * sequence . structure",
            "maximum": losses.max_logit_scale,
        },
    }


def _check_tensors(folder: Path) -> None:
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - a safetensors file is not a mapping
                tensor = file.get_tensor(name)
                if tensor.numel() == 0 or not bool(torch.isfinite(tensor.float()).all()):
                    what = "empty" if tensor.numel() == 0 else "not finite"
                    raise UserError(f"release: tensor {name} in {path.name} is {what}; nothing was released")


def _tokens(model: AlignmentModel, sequence: str) -> Tensor:
    alphabet = model.trunk.shape.alphabet
    residues = torch.from_numpy(alphabet.encode(sequence))
    return torch.cat([torch.tensor([alphabet.cls_id]), residues, torch.tensor([alphabet.eos_id])])


@torch.no_grad()
def _difference(model: AlignmentModel, loaded: torch.nn.Module, tokens: Tensor) -> float:
    ours = model.trunk.lm_logits(model.trunk(Packed(tokens, (len(tokens),))))
    theirs = loaded(input_ids=tokens[None], attention_mask=torch.ones_like(tokens)[None]).logits[0]
    scale = max(1.0, float(ours.abs().max()))
    return float((ours - theirs).abs().max()) / scale


@torch.no_grad()
def _contact_difference(
    model: AlignmentModel, loaded: torch.nn.Module, tokens: Tensor, regression: ContactRegression
) -> float:
    ours = predict_contacts(model.trunk.attention_maps(Packed(tokens, (len(tokens),)))[0], regression)
    theirs = loaded.predict_contacts(tokens[None], torch.ones_like(tokens)[None])[0]
    return float((ours - theirs).abs().max())


def _write_manifest(folder: Path, checkpoint: Checkpoint) -> dict[str, dict[str, object]]:
    for path in folder.rglob("*"):
        # safetensors writes files that only their owner may read.
        path.chmod(0o755 if path.is_dir() else 0o644)
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    content = {
        "format_version": FORMAT_VERSION,
        "run": checkpoint.config.name,
        "step": checkpoint.step,
        "weights_sha256": checkpoint.weights_sha256,
        "files": files,
    }
    (folder / MANIFEST_FILE).write_text(json.dumps(content, indent=1) + "\n")
    return files
