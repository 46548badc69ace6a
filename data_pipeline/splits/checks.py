"""What the split pass needs, looked at before the hours that parsing may take."""

from configs.errors import UserError
from configs.splits import LeakageConfig, SplitConfig
from data_pipeline.splits.fasta import read_fasta
from data_pipeline.splits.membership import table_form
from data_pipeline.splits.mmseqs import PROGRAM, REMEDY, mmseqs_version


def check_split_inputs(split: SplitConfig, leakage: LeakageConfig) -> None:
    """Open every file that the configuration names, and look for MMseqs2 where it is asked for by name.

    Raises:
        UserError: a table or FASTA file is missing or no such file, or MMseqs2 is missing.
    """
    if split.membership is not None:
        table_form(split.membership)
    for path in leakage.against:
        read_fasta(path)
    by_name = split.method == "mmseqs" or (leakage.against and leakage.method == "mmseqs")
    if by_name and mmseqs_version() is None:
        raise UserError(f"{PROGRAM} is not on the PATH; {REMEDY}")
