"""A campaign starts one Ray cluster, which its stages find and whose workers import this repository."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

from cluster.programs import ROOT

STAGE = """
import os, sys
import ray
ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)
@ray.remote
def task():
    import configs.build
    return configs.build.__file__, ray.get_runtime_context().gcs_address
place, address = ray.get(task.remote())
with open(sys.argv[1], "w") as file:
    file.write(place + "\\n" + address + "\\n")
"""


def test_stages_share_one_cluster_that_ends_with_the_campaign(tmp_path: Path) -> None:
    (tmp_path / "attach_probe.py").write_text(textwrap.dedent(STAGE))
    (tmp_path / "campaign.yaml").write_text(
        f"root: {tmp_path}/root\n"
        "stages:\n"
        f"  - {{name: one, command: [attach_probe, '{tmp_path}/one']}}\n"
        f"  - {{name: two, command: [attach_probe, '{tmp_path}/two'], after: [one]}}\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "HOME": str(tmp_path),
    }
    result = subprocess.run(
        [sys.executable, "-m", "cluster", "run", str(tmp_path / "campaign.yaml")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    one, two = ((tmp_path / name).read_text().splitlines() for name in ("one", "two"))
    assert one[0] == str(ROOT / "configs/build.py")
    assert one == two
    # Nobody answers at the address any more.
    again = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import socket; socket.create_connection(({one[1].rpartition(':')[0]!r}, {one[1].rpartition(':')[2]}), 2)",
        ],
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert again.returncode != 0
