"""Teachers on a CUDA device against themselves on the CPU."""

from pathlib import Path

import numpy as np
import pytest
import torch

from configs.teacher import GearNetConfig
from pretrain.teachers.gearnet import GearNet, GearNetTeacher
from pretrain.teachers.mpnn import load_mpnn
from pretrain.teachers.protocol import Teacher
from tests.unit.pretrain.chains import make_chain
from tests.unit.pretrain.test_derive_mpnn import write_random_mpnn

pytestmark = pytest.mark.gpu


def check_on_gpu(teacher: Teacher) -> None:
    chains = [make_chain(n, n, (2,)) for n in (90, 30, 200)]
    expected = teacher.embed_many(chains)
    for got, wanted in zip(teacher.to("cuda").embed_many(chains), expected, strict=True):
        # Matrix products in float32 without TensorFloat32.
        np.testing.assert_allclose(got, wanted, atol=1e-4)


def test_a_gpu_gives_the_mpnn_embeddings_of_the_cpu(tmp_path: Path) -> None:
    check_on_gpu(load_mpnn(write_random_mpnn(tmp_path / "mpnn.npz")))


@pytest.mark.parametrize("edge_messages", [False, True])
def test_a_gpu_gives_the_gearnet_embeddings_of_the_cpu(edge_messages: bool) -> None:
    torch.manual_seed(0)
    check_on_gpu(GearNetTeacher(GearNet(GearNetConfig(width=32, layers=2), edge_messages), "0" * 64))
