"""Loops over batches and epochs as functions of TensorFlow's graph, one file for each kind."""
