"""Keras' and TensorFlow's own functions, replaced while a block of code is open."""
