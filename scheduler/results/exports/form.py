"""What a search can be written as; imported by the command at its start, so without anything else."""

from enum import StrEnum


class Form(StrEnum):
    """What a search can be written as."""

    CSV = "csv"
    PARQUET = "parquet"
    JSON = "json"
    OPTUNA = "optuna"
    MLFLOW = "mlflow"
