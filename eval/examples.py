"""Files of what metrics are computed from, example by example, for paired comparison later.

A safetensors file: arrays that several metrics or seeds share (scores, labels, clusters) stand in it once. It carries
a sha256 of every array and of the text that says what they are, since the format itself holds none.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from configs.errors import UserError
from eval.intervals import Measurement
from eval.weighted_statistics import STATISTICS

FORMAT_VERSION = "2.0"
_KEYS = "\n"
"""Between the keys of examples, which hold no line breaks."""


def write_examples(path: Path, measurements: Sequence[Measurement]) -> None:
    """Write measurements by rename, so that a reader sees all of them or none."""
    tensors: dict[str, np.ndarray] = {}

    def stored(array: np.ndarray) -> str:
        name = _digest(array)
        # A copy in one piece: safetensors writes the memory of an array, whatever its strides say.
        tensors.setdefault(name, np.ascontiguousarray(array))
        return name

    facts = [
        {
            "metric": m.metric,
            "statistic": m.statistic,
            "seed": m.seed,
            "keys": stored(np.frombuffer(_KEYS.join(m.keys).encode(), dtype=np.uint8)),
            "clusters": stored(m.clusters),
            "rows": None if m.rows is None else stored(m.rows),
            "columns": {name: stored(column) for name, column in m.columns.items()},
        }
        for m in measurements
    ]
    text = json.dumps({"format_version": FORMAT_VERSION, "measurements": facts})
    temporary = path.with_suffix(f".{os.getpid()}.part")
    save_file(tensors, temporary, metadata={"content": text, "sha256": _sha256(text.encode())})
    os.replace(temporary, path)


def read_examples(path: Path) -> dict[str, list[Measurement]]:
    """Measurements by metric, one for each seed, as `write_examples` wrote them.

    Raises:
        UserError: the file is missing, damaged in any bit, or of another format.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            text = metadata["content"]
            if _sha256(text.encode()) != metadata["sha256"]:
                raise ValueError("its description does not match its sha256")
            content = json.loads(text)
            if content["format_version"] != FORMAT_VERSION:
                raise ValueError(f"format {content['format_version']}, this program reads {FORMAT_VERSION}")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (a safetensors file is no dict)
    except FileNotFoundError:
        raise UserError(f"examples {path}: no such file; evaluate the checkpoint again") from None
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"examples {path}: cannot be read ({reason}); evaluate the checkpoint again") from None
    damaged = [name for name, array in arrays.items() if _digest(array) != name]
    if damaged:
        raise UserError(f"examples {path}: damaged ({len(damaged)} arrays do not match their sha256); evaluate again")
    found: dict[str, list[Measurement]] = {}
    for fact in content["measurements"]:
        if fact["statistic"] not in STATISTICS:
            raise UserError(f"examples {path}: unknown statistic {fact['statistic']!r}; evaluate the checkpoint again")
        found.setdefault(fact["metric"], []).append(
            Measurement(
                fact["metric"],
                tuple(arrays[fact["keys"]].tobytes().decode().split(_KEYS)),
                {name: arrays[stored] for name, stored in fact["columns"].items()},
                arrays[fact["clusters"]],
                fact["statistic"],
                fact["seed"],
                None if fact["rows"] is None else arrays[fact["rows"]],
            )
        )
    return found


def _digest(array: np.ndarray) -> str:
    """Of type, shape and content."""
    head = f"{array.dtype.str} {array.shape} ".encode()
    return _sha256(head + np.ascontiguousarray(array).tobytes())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
