"""Models of all kinds behind one door, and what each refuses."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.errors import UserError
from configs.evaluate import EvalConfig
from eval.models.open import open_model
from eval.models.protocol import NotSupported, ProteinModel, Tunable
from pretrain.batch import Packed
from pretrain.checkpoints import open_checkpoint
from tests.unit.eval.makers import make_protein_model, train_config, write_checkpoint

SEQUENCES = ("MKTAYIAKQRQISFVKSHFSRQ", "ACDEFGHIKLMNPQRSTVWYX", "M", "GSHMACDEF")
CONFIG = EvalConfig(device="cpu")
MODULE = """
import numpy as np

def states(sequences):
    return [np.stack([np.arange(3) + ord(letter) for letter in s]) for s in sequences]

def pooled(sequences):
    return [np.zeros(3) for _ in sequences]

def angry(sequences):
    raise RuntimeError("no licence")

states.version = "7"
number = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "their_model.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("their_model", None)
    return "their_model"


def test_run_folders_checkpoints_and_opened_ones_are_the_same_model(tmp_path: Path) -> None:
    path = write_checkpoint(train_config(tmp_path, tmp_path), 10)
    models = [open_model(spec, CONFIG) for spec in (path, str(path.parent.parent), open_checkpoint(path))]
    assert {model.weights_sha256 for model in models} == {open_checkpoint(path).weights_sha256}
    assert {(m.name, m.description) for m in models} == {("small step 10", "esm2 2x32x4")}
    assert all(isinstance(model, ProteinModel) for model in models)
    assert isinstance(models[0].trunk(), Tunable)


def test_masked_likelihoods_equal_one_forward_for_each_job(tmp_path: Path) -> None:
    for family in ("esm2", "amplify"):
        model = make_protein_model(train_config(tmp_path, tmp_path, family=family))
        jobs = [(SEQUENCES[0], np.array([0, 5])), (SEQUENCES[0], np.array([21])), (SEQUENCES[1], np.array([3]))]
        for (sequence, positions), found in zip(jobs, model.masked_log_probs(jobs), strict=True):
            tokens = model.tokens_of(sequence)
            tokens[positions + 1] = model.alphabet.mask_id
            with torch.no_grad():
                log_p = model.encoder.lm_logits(model.encoder(Packed(tokens, (len(tokens),)))).log_softmax(-1)
            columns = torch.from_numpy(model.alphabet.encode("ACDEFGHIKLMNPQRSTVWY"))
            # float32 rounding of another batching.
            torch.testing.assert_close(found, log_p[positions + 1][:, columns], atol=1e-5, rtol=0)


def test_the_own_heads_logits_are_those_of_training(tmp_path: Path) -> None:
    model = make_protein_model(train_config(tmp_path, tmp_path))
    tokens = model.tokens_of(SEQUENCES[0])
    with torch.no_grad():
        hidden = model.encoder(Packed(tokens, (len(tokens),)))
        expected = model.model.threedi_logits(hidden, torch.arange(1, len(tokens) - 1))
    found = model.threedi_logits([SEQUENCES[0]])
    torch.testing.assert_close(found[0], expected, atol=1e-6, rtol=0)
    assert torch.equal(model.threedi_of(model.hidden([SEQUENCES[0]]))[0], found[0])


def test_bfloat16_is_another_view_of_the_same_weights(tmp_path: Path) -> None:
    model = make_protein_model(train_config(tmp_path, tmp_path))
    rough = model.at("bfloat16")
    assert (rough.weights_sha256, rough.precision, model.precision) == (model.weights_sha256, "bfloat16", "float32")
    assert model.at("float32") is model
    for a, b in zip(model.hidden(SEQUENCES), rough.hidden(SEQUENCES), strict=True):
        assert b.dtype == torch.float32
        assert not torch.equal(a, b)
        # bfloat16 keeps 8 bits, states are of order 1.
        torch.testing.assert_close(a, b, atol=0.2, rtol=0)
    assert next(model.encoder.parameters()).dtype == torch.float32


def test_tuning_a_copy_leaves_the_model_alone(tmp_path: Path) -> None:
    model = make_protein_model(train_config(tmp_path, tmp_path))
    before, tunable = model.hidden(SEQUENCES), model.trunk()
    optimizer = torch.optim.SGD(tunable.module.parameters(), lr=0.1)
    torch.cat(tunable.states(SEQUENCES)).square().sum().backward()
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.hidden(SEQUENCES), strict=True))
    assert not torch.equal(tunable.states(SEQUENCES)[0], before[0])


def test_a_function_gives_states_and_nothing_else(module: str) -> None:
    model = open_model(f"callable:{module}:states", CONFIG)
    assert isinstance(model, ProteinModel)
    assert (model.width, model.layers, model.at("bfloat16")) == (3, 1, model)
    found = model.hidden(["MK", "A"])
    assert found[0].tolist() == [[77, 78, 79], [75, 76, 77]]
    assert model.threedi_logits(["MK"]) is None
    for refused in (
        lambda: model.masked_log_probs([("MK", np.array([0]))]),
        lambda: model.log_probs(["MK"]),
        lambda: model.attention_maps("MK"),
        lambda: model.hidden(["MK"], all_layers=True),
        model.trunk,
    ):
        with pytest.raises(NotSupported):
            refused()


def test_a_functions_weights_are_named_by_version_or_source(module: str, tmp_path: Path) -> None:
    first = open_model(f"callable:{module}:states", CONFIG).weights_sha256
    assert len(first) == 64
    (tmp_path / "their_model.py").write_text(MODULE + "\n# another line\n")
    sys.modules.pop(module)
    assert open_model(f"callable:{module}:states", CONFIG).weights_sha256 == first, "its version is the same"
    (tmp_path / "their_model.py").write_text(MODULE.replace('"7"', '"8"'))
    sys.modules.pop(module)
    assert open_model(f"callable:{module}:states", CONFIG).weights_sha256 != first


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pooled", r"shapes \[\(3,\)\] for 1 sequences"),
        ("angry", "raised RuntimeError: no licence"),
        ("number", "is a int"),
        ("none", "no attribute 'none'"),
    ],
)
def test_a_function_that_gives_something_else_is_refused(module: str, name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        open_model(f"callable:{module}:{name}", CONFIG)


def test_names_of_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        open_model(tmp_path / "none", CONFIG)
    with pytest.raises(UserError, match="No module named"):
        open_model("callable:no_such_module:f", CONFIG)
    with pytest.raises(UserError, match=r"model hf:lab/none: cannot be opened"):
        open_model("hf:lab/none", CONFIG)


def test_a_model_that_brings_its_own_code_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "AMPLIFY"
    folder.mkdir()
    (folder / "amplify.py").write_text("raise SystemExit('ran code of others')\n")
    (folder / "config.json").write_text(
        '{"model_type": "AMPLIFY", "auto_map": {"AutoConfig": "amplify.C", "AutoModel": "amplify.M"}}'
    )
    with pytest.raises(UserError, match=r"needs code .* never run here"):
        open_model(folder, CONFIG)
