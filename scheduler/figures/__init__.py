"""A search as figures, and as Optuna's study."""
