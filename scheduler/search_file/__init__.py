"""A search as a YAML file: read, validated, made into an estimator and data, submitted."""
