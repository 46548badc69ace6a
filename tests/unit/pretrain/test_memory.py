"""What becomes of freed memory: each rule in a process of its own, as it holds for all that a process does later."""

import os
import subprocess
import sys

import pytest

from tests.unit.pretrain.training import ROOT

PROBE = """
import torch
from pretrain.memory import keep_freed_memory, resident_bytes, return_freed_memory
{rule}()
before = resident_bytes()
blocks = [torch.ones(4 << 20, dtype=torch.uint8) for _ in range(32)]
last = torch.ones(1 << 18, dtype=torch.uint8)
del blocks
print((resident_bytes() - before) >> 20)
"""
"""Blocks of 4 MiB, 128 in all, below one that lives on."""


def megabytes_left(rule: str, **environment: str) -> int:
    """That a process still holds after it has freed 128."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", PROBE.format(rule=rule)]
    done = subprocess.run(
        command, cwd=ROOT, env={**kept, **environment}, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_memory_is_kept_or_returned_as_the_process_says() -> None:
    # Room for what the interpreter itself does in between.
    assert megabytes_left("keep_freed_memory") > 120
    assert megabytes_left("return_freed_memory") < 8


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_the_environment_has_the_last_word() -> None:
    assert megabytes_left("keep_freed_memory", MALLOC_MMAP_THRESHOLD_="65536") < 8
