"""A published state dict of GearNet-Edge as the teacher of a derived column and of online embeddings."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from configs.teacher import DeriveConfig, GearNetConfig, TeacherConfig
from configs.train import TrainConfig
from configs.training_data import DataConfig
from data_pipeline.derived import DerivedReader
from data_pipeline.reader import ShardReader
from data_pipeline.shards import write_shards
from pretrain.derive import derive_teacher
from pretrain.teachers.gearnet import GearNet
from pretrain.teachers.load import load_teacher
from tests.unit.pretrain.chains import make_chain

SHAPE = GearNetConfig(layers=2, width=8, representation="concat")
CHAINS = [make_chain(20 + i, i, (3,)) for i in range(4)]


def test_the_column_holds_what_the_teacher_gives_online(tmp_path: Path) -> None:
    torch.manual_seed(0)
    write_shards(tmp_path / "shards", {"train": CHAINS}, samples_per_shard=3)
    save_file(GearNet(SHAPE, edge_messages=True).state_dict(), tmp_path / "edge.safetensors")
    teacher = TeacherConfig(
        kind="gearnet_edge", gearnet=SHAPE, weights=tmp_path / "edge.safetensors", column="gearnet_edge"
    )
    config = TrainConfig(
        stage="align",
        name="x",
        data=DataConfig(shards=tmp_path / "shards"),
        teacher=teacher,
        trunk={"layers": 1, "width": 8, "heads": 1},
        derive=DeriveConfig(num_workers=1),
    )
    derive_teacher(config, tmp_path / "shards")
    online = load_teacher(teacher)
    with ShardReader(tmp_path / "shards") as reader, DerivedReader(reader, "gearnet_edge") as column:
        assert column.facts["teacher"] == "gearnet_edge"
        assert column.facts["width"] == online.width == 16
        for number, chain in enumerate(CHAINS):
            wanted = online.embed(reader.sample("train", number))
            got = column.embedding("train", number)
            # float16 in the column
            np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-3)
            assert (got.any(axis=1) == chain.valid).all()
