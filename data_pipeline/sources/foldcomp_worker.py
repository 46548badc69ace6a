"""Decompresses Foldcomp entries for a parent process: the library can crash, which must end only this process.

Run by its path, with the seconds allowed per entry. Standard input: entries, each after its length (uint32, little
endian). Standard output, per entry: status (uint8: 0 text follows, 1 an error message), length (uint32), content.
Imports nothing of this project, so that it starts quickly and wherever the interpreter does.
"""

import os
import resource
import signal
import struct
import sys
from typing import BinaryIO


def serve(requests: BinaryIO, answers: BinaryIO, seconds: float) -> None:
    """Answer until the requests end; an entry that takes longer ends the process by SIGALRM, library code or not."""
    import foldcomp

    while header := requests.read(4):
        data = requests.read(struct.unpack("<I", header)[0])
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            status, content = 0, foldcomp.decompress(data)[1].encode()
        except Exception as error:
            status, content = 1, f"{type(error).__name__}: {error}".encode()
        signal.setitimer(signal.ITIMER_REAL, 0)
        answers.write(struct.pack("<BI", status, len(content)) + content)
        answers.flush()


def main() -> None:
    # The library may print; its words must not get between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    serve(sys.stdin.buffer, answers, float(sys.argv[1]))


if __name__ == "__main__":
    main()
