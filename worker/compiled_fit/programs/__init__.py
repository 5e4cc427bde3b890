"""Keras' loops over batches and epochs as functions of TensorFlow's graph, for any model of the same structure.

A model's own ``train_step``, ``test_step`` or ``predict_step`` is traced once; a program runs it for another model by
handing it the handles of that model's variables in place of its own, so nothing is copied or traced anew.
"""
