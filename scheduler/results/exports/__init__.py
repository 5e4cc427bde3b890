"""A search in the forms of other programs: CSV, Parquet, JSON, a study of Optuna, runs of MLflow."""
