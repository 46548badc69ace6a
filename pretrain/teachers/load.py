"""Opening the teacher that a config names."""

from typing import TYPE_CHECKING

from configs.errors import UserError
from configs.teacher import TeacherConfig
from pretrain.checkpoints import open_checkpoint
from pretrain.teachers.protocol import Teacher

if TYPE_CHECKING:
    from pretrain.teachers.gearnet import GearNetTeacher

GEARNET_PREFIX = "gearnet."


def load_teacher(config: TeacherConfig) -> Teacher:
    """The frozen teacher, ready to embed.

    Raises:
        UserError: no weights named, none there, or weights of something else.
    """
    if config.weights is None:
        what = {"gearnet": "a checkpoint or run folder of stage `teacher`", "mpnn": "the .npz of the MPNN encoder"}
        raise UserError(f"teacher.weights is not set for a {config.kind} teacher: name {what[config.kind]}")
    if config.kind == "mpnn":
        from pretrain.teachers.mpnn import load_mpnn

        return load_mpnn(config.weights)
    return _load_gearnet(config)


def _load_gearnet(config: TeacherConfig) -> "GearNetTeacher":
    checkpoint = open_checkpoint(config.weights)
    if checkpoint.config.stage != "teacher":
        stage = checkpoint.config.stage
        raise UserError(f"teacher.weights {config.weights}: a checkpoint of stage {stage!r}; name one of `teacher`")
    weights = {
        name.removeprefix(GEARNET_PREFIX): tensor
        for name, tensor in checkpoint.weights().items()
        if name.startswith(GEARNET_PREFIX)
    }
    # torch-geometric takes seconds to import: only programs that open a GearNet pay for it.
    from pretrain.teachers.gearnet import GearNet, GearNetTeacher

    network = GearNet(checkpoint.config.teacher.gearnet)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:200]
        raise UserError(f"teacher.weights {config.weights}: not the weights of its GearNet ({detail})") from None
    return GearNetTeacher(network, checkpoint.weights_sha256)
