"""One Ray cluster on this machine for all stages of a campaign."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger("cluster")

MIN_CPUS = 2
"""Ray is told at least this many, so that a run with two workers is scheduled on a single-core machine too."""


@contextmanager
def local_cluster() -> Iterator[str]:
    """Address of a Ray cluster: that of RAY_ADDRESS where it is set, else one that lives as long as this context.

    Its processes end with this one, however it ends. Children find it through the environment variable RAY_ADDRESS,
    which is set inside the context, and authenticate with the token that Ray puts into their environment or home.
    """
    if address := os.environ.get("RAY_ADDRESS"):
        log.info("using the Ray cluster at %s (RAY_ADDRESS)", address)
        yield address
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Two programs share the cores (a run and its evaluation): threads that wait must sleep, not spin.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import ray

    began = time.monotonic()
    context = ray.init(
        address="local",
        num_cpus=max(os.cpu_count() or 1, MIN_CPUS),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    address = context.address_info["address"]
    log.info("local Ray cluster at %s, started in %.0f s", address, time.monotonic() - began)
    os.environ["RAY_ADDRESS"] = address
    try:
        yield address
    finally:
        del os.environ["RAY_ADDRESS"]
        ray.shutdown()
