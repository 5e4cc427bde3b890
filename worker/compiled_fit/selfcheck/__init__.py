"""Whether compiled fits still equal Keras' own: a tool to run against a new release of Keras or TensorFlow."""
