"""The rows of a call: as tensors, and in the order in which Keras feeds them."""
