"""`python -m data_pipeline build|audit`."""

from configs.program import run_program
from data_pipeline.cli import app

if __name__ == "__main__":
    run_program(app)
