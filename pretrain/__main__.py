"""`python -m pretrain`."""

from configs.program import run_program
from pretrain.cli import app

if __name__ == "__main__":
    run_program(app)
