"""A cluster of two nodes on this machine, of which one is lost in the middle of a training run.

`python -m tests.faults.elastic_cluster FOLDER` trains in FOLDER; a program of its own, as a process has one cluster.
"""

import sys
import threading
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from configs.train import TrainConfig
from pretrain.launch import train
from pretrain.run_folder import read_status, run_path
from tests.unit.pretrain.training import make_config

NUM_STEPS = 600
"""Long enough that the node is lost before the end, whatever the machine."""
LOST_AFTER = 30
EVERY = 20


def elastic_config(folder: Path, address: str | None = None) -> TrainConfig:
    return make_config(
        folder,
        name="elastic",
        engine__launcher="ray",
        engine__address=address,
        engine__num_workers=2,
        engine__min_workers=1,
        optimizer__steps=NUM_STEPS,
        checkpoint__every=EVERY,
    )


def main() -> int:
    """Train on two nodes of one CPU each, and take one away."""
    folder = Path(sys.argv[1])
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    other = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    config = elastic_config(folder, cluster.address)

    def lose_node() -> None:
        while read_status(run_path(config)).get("step", 0) < LOST_AFTER:
            time.sleep(0.02)
        cluster.remove_node(other, allow_graceful=False)

    threading.Thread(target=lose_node, daemon=True).start()
    code = train(config)
    ray.shutdown()
    cluster.shutdown()
    return code


if __name__ == "__main__":
    sys.exit(main())
