"""`python -m cluster`: see `--help`."""

from cluster.cli import app
from configs.program import run_program

if __name__ == "__main__":
    run_program(app)
