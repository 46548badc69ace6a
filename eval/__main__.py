"""`python -m eval`: see `--help`."""

from configs.program import run_program
from eval.cli import app

if __name__ == "__main__":
    run_program(app)
