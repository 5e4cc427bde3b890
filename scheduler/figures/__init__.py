"""What a search looks like: plotly's figures, and Optuna's study, made of its rows. Changes nothing."""
