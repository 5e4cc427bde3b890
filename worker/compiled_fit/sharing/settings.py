"""The settings of Keras and TensorFlow that a trace depends on."""

from __future__ import annotations

import keras
import tensorflow as tf
from keras.src.backend import config as keras_config
from tensorflow.python.framework.config import is_op_determinism_enabled


def global_settings() -> list[str | float | bool | None]:
    """Return their values, in a fixed order."""
    return [
        keras.config.floatx(),
        keras.config.epsilon(),
        keras.config.image_data_format(),
        keras_config.is_nnx_enabled() if hasattr(keras_config, "is_nnx_enabled") else False,
        str(keras.config.dtype_policy().name),
        keras.config.is_flash_attention_enabled(),
        is_op_determinism_enabled(),
        bool(tf.config.functions_run_eagerly()),
    ]
