"""Training situations drawn from seeds: models, data, callbacks and calls of people."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from gridfleet.worker.compiled_fit import compiled_fit

#: Rows of all data.
N_ROWS = 46

Data = tuple[Any, Any]


@keras.saving.register_keras_serializable("situations")
class Doubled(layers.Layer):
    """A layer of one's own, with a weight and a loss."""

    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, inputs: Any) -> Any:
        self.add_loss(0.01 * ops.mean(ops.square(inputs)))
        return inputs * self.scale * 2.0


class Plain(keras.Model):
    """A model of one's own whose call is all that it overrides."""

    def __init__(self, out: Any) -> None:
        super().__init__()
        self.hidden, self.dropout, self.out = layers.Dense(5, "relu"), layers.Dropout(0.2), out

    def call(self, inputs: Any, training: bool = False) -> Any:
        return self.out(self.dropout(self.hidden(inputs), training=training))


class OwnStep(keras.Model):
    """A model with a ``train_step`` as in Keras' guide."""

    def train_step(self, data: Any) -> Any:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            predicted = self(x, training=True)
            loss = self.compute_loss(x, y, predicted, sample_weight)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        for metric in self.metrics:
            metric.update_state(*((loss,) if metric.name == "loss" else (y, predicted)))
        return {metric.name: metric.result() for metric in self.metrics}


class F1(keras.Metric):
    """The metric that people write themselves."""

    def __init__(self, name: str = "f1") -> None:
        super().__init__(name=name)
        self.precision, self.recall = keras.metrics.Precision(), keras.metrics.Recall()

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        self.precision.update_state(y_true, y_pred, sample_weight)
        self.recall.update_state(y_true, y_pred, sample_weight)

    def result(self) -> Any:
        p, r = self.precision.result(), self.recall.result()
        return 2 * p * r / (p + r + keras.config.epsilon())

    def reset_state(self) -> None:
        self.precision.reset_state()
        self.recall.reset_state()


class At(keras.callbacks.Callback):
    """Acts on the model at a moment of an epoch."""

    def __init__(self, moment: str, epoch: int, act: Callable[[Any], Any]) -> None:
        super().__init__()
        self.epoch, self.act = epoch, act
        setattr(self, moment, self._act)

    def _act(self, *arguments: Any) -> None:
        if not isinstance(arguments[0], int) or arguments[0] == self.epoch:
            self.act(self.model)


class Sums(keras.callbacks.Callback):
    """Adds up the losses of batches."""

    def __init__(self, seen: list[Any]) -> None:
        super().__init__()
        self.seen = seen

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.seen.append((batch, float(logs["loss"])))


def own_loss(y_true: Any, y_pred: Any) -> Any:
    return ops.mean(ops.square(ops.cast(y_true, y_pred.dtype) - y_pred), axis=-1) + 0.1 * ops.mean(ops.abs(y_pred))


ACTIVATIONS = sorted(
    name
    for name in vars(keras.activations)
    if name.islower()
    and name not in ("get", "serialize", "deserialize", "glu", "softmax", "log_softmax", "threshold")
    and callable(getattr(keras.activations, name))
)


class Drawn:
    """A situation, drawn from a seed; everything in it is drawn before anything runs, so that two runs are alike.

    Parameters
    ----------
    seed : int
    for_xla : bool, default=False
        Whether to draw from what XLA trains: fits of several epochs with full batches, and no batch-level callbacks.
    with_datasets : bool, default=False
        Whether most data are Datasets, some do not fit the model, and calls follow one that failed.
    """

    def __init__(self, seed: int, *, for_xla: bool = False, with_datasets: bool = False) -> None:
        self.seed = seed
        self.for_xla = for_xla
        self.with_datasets = with_datasets
        self.draw = random.Random(seed)
        self.notes: list[str] = []

    def pick(self, *choices: Any) -> Any:
        """Draw one of several; a pair of a name and a value is noted by its name."""
        chosen = self.draw.choice(choices)
        self.notes.append(
            str(chosen[0]) if isinstance(chosen, tuple) and chosen and isinstance(chosen[0], str) else str(chosen)
        )
        return chosen

    def chance(self, part: float) -> bool:
        return self.draw.random() < part

    # Parts

    def activation(self) -> Any:
        return self.pick(*ACTIVATIONS)

    def hidden(self) -> list[Any]:
        kinds = {
            "dense": lambda: layers.Dense(self.draw.choice([3, 6]), self.activation()),
            "l2": lambda: layers.Dense(4, self.activation(), kernel_regularizer=keras.regularizers.L1L2(0.01, 0.1)),
            "norm": lambda: layers.Dense(4, kernel_constraint=keras.constraints.MaxNorm(0.8)),
            "batch": layers.BatchNormalization,
            "layer": layers.LayerNormalization,
            "group": lambda: layers.GroupNormalization(groups=1),
            "unit": layers.UnitNormalization,
            "dropout": lambda: layers.Dropout(0.3),
            "noise": lambda: layers.GaussianNoise(0.1),
            "alpha": lambda: layers.AlphaDropout(0.2),
            "prelu": layers.PReLU,
            "leaky": layers.LeakyReLU,
            "own": Doubled,
            "swish": lambda: layers.Activation("swish"),
            "lambda": lambda: layers.Lambda(lambda x: x / 3.0),
            "rescaling": lambda: layers.Rescaling(1.0 / 7, 0.5),
            "activity": lambda: layers.Dense(3, "tanh", activity_regularizer=keras.regularizers.L2(0.1)),
        }
        if self.for_xla:
            kinds.pop("noise")  # XLA draws it by another formula
        names = [self.draw.choice(sorted(kinds)) for _ in range(self.draw.randint(1, 3))]
        self.notes.extend(names)
        return [kinds[name]() for name in names]

    def model(  # noqa: C901 - a table of models
        self, n_out: int, last: str | None
    ) -> tuple[Any, Callable[[np.random.Generator], Any]]:
        """Return a model that is not compiled, and what draws its features."""
        kind = self.pick(
            "sequential", "sequential", "unbuilt", "functional", "wide", "wide", "late", "nested", "conv1d", "conv2d",
            "recurrent", "words", "attention", "plain", "own_step", "shared", "dict_input", "separable",
        )  # fmt: skip
        out = layers.Dense(n_out, activation=last)

        def flat(generator: np.random.Generator) -> Any:
            return generator.normal(size=(N_ROWS, 5)).astype("float32")

        def two(generator: np.random.Generator) -> Any:
            return [flat(generator), flat(generator)]

        if kind in ("sequential", "unbuilt"):
            inputs = [layers.Input((5,))] if kind == "sequential" else []
            return keras.Sequential([*inputs, *self.hidden(), out]), flat
        if kind in ("functional", "own_step"):
            x = start = keras.Input((5,))
            for layer in self.hidden():
                x = layer(x)
            return (keras.Model if kind == "functional" else OwnStep)(start, out(x)), flat
        if kind == "plain":
            return Plain(out), flat
        if kind in ("wide", "late"):
            i, j = keras.Input((5,)), keras.Input((5,))
            deep = j
            for layer in self.hidden():
                deep = layer(deep)
            if kind == "wide":
                joined = layers.Add()([layers.Dense(n_out)(i), layers.Dense(n_out)(deep)])
                return keras.Model([i, j], layers.Activation(last or "linear")(joined)), two
            joint = self.pick(layers.Concatenate, layers.Multiply, layers.Average, layers.Subtract)
            return keras.Model([i, j], out(joint()([layers.Dense(4)(i), layers.Dense(4, "tanh")(deep)]))), two
        if kind == "dict_input":
            i, j = keras.Input((5,), name="a"), keras.Input((5,), name="b")
            joined = layers.Concatenate()([layers.Dense(3, self.activation())(i), layers.Dense(3)(j)])
            return keras.Model({"a": i, "b": j}, out(joined)), lambda generator: dict(
                zip("ab", two(generator), strict=True)
            )
        if kind == "nested":
            inner = keras.Sequential([layers.Input((5,)), *self.hidden(), layers.Dense(4)])
            start = keras.Input((5,))
            return keras.Model(start, out(layers.ReLU()(inner(start)))), flat
        if kind == "shared":
            i, j, dense = keras.Input((5,)), keras.Input((5,)), layers.Dense(4, self.activation())
            return keras.Model([i, j], out(layers.Subtract()([dense(i), dense(j)]))), two
        if kind in ("conv1d", "separable"):
            conv = layers.Conv1D if kind == "conv1d" else layers.SeparableConv1D
            pool = self.pick(layers.MaxPooling1D, layers.AveragePooling1D)
            return (
                keras.Sequential(
                    [layers.Input((8, 3)), conv(4, 3, activation=self.activation()), pool(2), layers.Flatten(), out]
                ),
                lambda generator: generator.normal(size=(N_ROWS, 8, 3)).astype("float32"),
            )
        if kind == "conv2d":
            middle = self.pick(("batch", layers.BatchNormalization), ("dropout", lambda: layers.SpatialDropout2D(0.2)))[
                1
            ]
            return (
                keras.Sequential(
                    [
                        layers.Input((6, 6, 2)),
                        layers.Conv2D(3, 3),
                        middle(),
                        layers.Activation(self.activation()),
                        layers.GlobalAveragePooling2D(),
                        out,
                    ]
                ),
                lambda generator: generator.normal(size=(N_ROWS, 6, 6, 2)).astype("float32"),
            )
        if kind == "recurrent":
            cell = self.pick(layers.LSTM, layers.GRU, layers.SimpleRNN)
            recurrent = cell(3, recurrent_dropout=self.pick(0.0, 0.2))
            if self.chance(0.3):
                recurrent = layers.Bidirectional(recurrent)
            return (
                keras.Sequential([layers.Input((4, 3)), recurrent, out]),
                lambda generator: generator.normal(size=(N_ROWS, 4, 3)).astype("float32"),
            )
        if kind == "words":
            after = self.pick(("mean", layers.GlobalAveragePooling1D), ("lstm", lambda: layers.LSTM(3)))[1]
            embedding = layers.Embedding(9, 4, mask_zero=self.pick(False, True))
            return (
                keras.Sequential([layers.Input((5,)), embedding, after(), out]),
                lambda generator: generator.integers(0, 9, (N_ROWS, 5)),
            )
        start = keras.Input((4, 6))
        attended = layers.MultiHeadAttention(2, 3, dropout=self.pick(0.0, 0.2))(start, start)
        joined = layers.LayerNormalization()(layers.Add()([start, attended]))
        return (
            keras.Model(start, out(layers.GlobalAveragePooling1D()(joined))),
            lambda generator: generator.normal(size=(N_ROWS, 4, 6)).astype("float32"),
        )

    def optimizer(self) -> Any:
        kinds = ("Adam", "SGD", "RMSprop", "AdamW", "Nadam", "Adagrad", "Adadelta", "Adamax", "Lion", "Ftrl", "Lamb",
                 "Muon", "Adafactor")  # fmt: skip
        name = self.pick(*kinds[:3], *kinds)
        options: dict[str, Any] = self.pick(
            {}, {}, {}, {"clipnorm": 0.1}, {"global_clipnorm": 0.1}, {"clipvalue": 0.01}, {"use_ema": True},
            {"use_ema": True, "ema_overwrite_frequency": 3}, {"gradient_accumulation_steps": 2}, {"weight_decay": 0.01},
        )  # fmt: skip
        if name == "SGD":
            options = options | self.pick({}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True})
        if name == "RMSprop":
            options = options | self.pick({}, {"centered": True, "momentum": 0.5})
        if name == "Adam":
            options = options | self.pick({}, {"amsgrad": True})
        rate = self.pick(
            ("0.01", lambda: 0.01),
            ("0.1", lambda: 0.1),
            ("cosine", lambda: keras.optimizers.schedules.CosineDecay(0.05, 9)),
            ("exponential", lambda: keras.optimizers.schedules.ExponentialDecay(0.05, 3, 0.5)),
            ("piecewise", lambda: keras.optimizers.schedules.PiecewiseConstantDecay([3, 6], [0.1, 0.05, 0.01])),
        )[1]
        try:
            return getattr(keras.optimizers, name)(learning_rate=rate(), **options)
        except (TypeError, ValueError):
            return getattr(keras.optimizers, name)(learning_rate=0.01)

    def task(self) -> tuple[int, str | None, Any, list[Any], Callable[[np.random.Generator], Any]]:
        """Return outputs, last activation, loss, metrics and what draws targets."""
        metrics = keras.metrics
        kind = self.pick("binary", "binary", "classes", "one_hot", "amount", "amounts")
        if kind == "binary":
            loss = self.pick(
                "binary_crossentropy", "hinge", "binary_focal_crossentropy", "mse", own_loss, "dice", "tversky"
            )
            choices = [
                "accuracy", "auc", "mae", "precision", F1, metrics.Recall, metrics.BinaryIoU, metrics.TruePositives,
                lambda: metrics.F1Score("macro", 0.5), lambda: metrics.F1Score(threshold=0.5),
                lambda: metrics.Precision(thresholds=[0.3, 0.7]), lambda: metrics.FBetaScore("micro", 3.0, 0.4),
                lambda: metrics.SensitivityAtSpecificity(0.5),
            ]  # fmt: skip
            shape = self.pick((N_ROWS,), (N_ROWS, 1))
            return 1, "sigmoid", loss, choices, lambda generator: generator.integers(0, 2, shape)
        if kind == "classes":
            choices = ["accuracy", "sparse_categorical_crossentropy", "sparse_top_k_categorical_accuracy",
                       lambda: metrics.SparseTopKCategoricalAccuracy(2)]  # fmt: skip
            loss = self.pick(
                "sparse_categorical_crossentropy", keras.losses.SparseCategoricalCrossentropy(ignore_class=1)
            )
            return 3, "softmax", loss, choices, lambda generator: generator.integers(0, 3, N_ROWS)
        if kind == "one_hot":
            choices = ["accuracy", "auc", "categorical_crossentropy", "kl_divergence",
                       lambda: metrics.F1Score("weighted"), metrics.F1Score, "cosine_similarity",
                       lambda: metrics.OneHotMeanIoU(3)]  # fmt: skip
            loss = self.pick(
                "categorical_crossentropy",
                "categorical_focal_crossentropy",
                keras.losses.CategoricalCrossentropy(label_smoothing=0.1),
                "kl_divergence",
            )
            return (
                3,
                "softmax",
                loss,
                choices,
                lambda generator: np.eye(3, dtype="float32")[generator.integers(0, 3, N_ROWS)],
            )
        width = 1 if kind == "amount" else 3
        choices = [
            "mae", "mse", "mape", metrics.RootMeanSquaredError, metrics.R2Score, "cosine_similarity",
            metrics.CosineSimilarity, metrics.PearsonCorrelation, metrics.ConcordanceCorrelation, "logcosh",
            metrics.MeanSquaredLogarithmicError,
        ]  # fmt: skip
        loss = self.pick(
            "mse", "mae", keras.losses.Huber(0.3), "log_cosh", own_loss, "mean_squared_logarithmic_error", "poisson"
        )
        shape = (N_ROWS,) if width == 1 and self.chance(0.5) else (N_ROWS, width)
        return width, None, loss, choices, lambda generator: generator.normal(size=shape).astype("float32")

    def callbacks(self, seen: list[Any]) -> list[Any]:  # noqa: C901 - a table of callbacks
        callbacks = keras.callbacks

        def force(model: Any) -> None:
            model.make_train_function(force=True)

        def freeze_and_force(model: Any) -> None:
            model.layers[-1].trainable = False
            model.make_train_function(force=True)

        def freeze(model: Any) -> None:
            model.layers[0].trainable = False

        def halve(model: Any) -> None:
            with contextlib.suppress(TypeError):
                model.optimizer.learning_rate = 0.003

        def schedule(model: Any) -> None:
            model.optimizer.learning_rate = keras.optimizers.schedules.CosineDecay(0.2, 9)

        def stop(model: Any) -> None:
            model.stop_training = True

        def shift(model: Any) -> None:
            model.set_weights([weight + 0.01 for weight in model.get_weights()])

        acts = (force, freeze_and_force, freeze, halve, schedule, stop, shift)
        moments = ("on_epoch_begin", "on_epoch_end", "on_train_begin", "on_test_end")
        makers = {
            "early": lambda: callbacks.EarlyStopping("loss", patience=1, restore_best_weights=True, mode="max"),
            "plateau": lambda: callbacks.ReduceLROnPlateau("loss", patience=0, min_delta=9),
            "scheduler": lambda: callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.7),
            "nan": callbacks.TerminateOnNaN,
            "ema": callbacks.SwapEMAWeights,
            "sums": lambda: Sums(seen),
            "act": lambda: At(self.draw.choice(moments), self.draw.randint(0, 2), self.draw.choice(acts)),
        }
        for name in ("nan", "ema", "sums") * self.for_xla:
            del makers[name]
        names = [self.draw.choice(sorted(makers)) for _ in range(self.draw.choice([0, 0, 1, 1, 2]))]
        if "ema" in names and not self.chance(0.3):
            names.remove("ema")
        made = []
        for name in names:
            made.append(makers[name]())
            act = getattr(getattr(made[-1], "act", None), "__name__", "")
            self.notes.append(f"{name} {act}".strip())
        return made

    def fit_arguments(self, x: Any, y: Any, *, has_one_output: bool) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "epochs": self.draw.choice([2, 3] if self.for_xla else [1, 2, 3]),
            "batch_size": self.pick(*((4, 7, 8, 16) if self.for_xla else (4, 7, 8, 16, 23, 46, 100))),
            "verbose": 0,
            "shuffle": self.draw.choice([True, True, False, "batch"]),
        }
        options = ("none", "none", "split", "split", "validation", "weights", "class_weight")
        option = self.pick(*options, *(() if self.for_xla else ("steps", "validation_steps")), "frequency")
        if option in ("split", "frequency"):
            arguments["validation_split"] = 0.3
        if option == "frequency":
            arguments["validation_freq"] = 2
        if option in ("validation", "validation_steps"):
            rows = slice(0, self.draw.choice([8, 11]))
            arguments["validation_data"] = tuple(keras.tree.map_structure(lambda one: one[rows], (x, y)))
        if option == "validation_steps":
            arguments.update(validation_steps=1, validation_batch_size=4)
        if option == "steps":
            arguments["steps_per_epoch"] = 2
        if option == "weights":
            arguments["sample_weight"] = np.linspace(0.1, 2, N_ROWS).astype("float32")
        if option == "class_weight" and np.asarray(y).dtype.kind == "i":
            arguments["class_weight"] = {0: 0.5, 1: 2.0, 2: 1.0}
        return arguments

    # Datasets

    def dataset(self, *parts: Any, size: int) -> Any:
        """Return a Dataset of rows in batches."""
        rows = tf.data.Dataset.from_tensor_slices(keras.tree.lists_to_tuples(parts))
        make = {
            "plain": lambda: rows.batch(size),
            "prefetched": lambda: rows.batch(size).prefetch(2),
            "cut": lambda: rows.batch(size, drop_remainder=True),
            "shuffled": lambda: rows.shuffle(50, seed=3).batch(size),
            "shuffled anew": lambda: rows.shuffle(50).batch(size),
            "shuffled once": lambda: rows.shuffle(50, seed=4, reshuffle_each_iteration=False).batch(size),
            "cached": lambda: rows.cache().shuffle(20).batch(size),
            "twice": lambda: rows.batch(size).repeat(2),
            "some": lambda: rows.batch(size).take(2),
            "mapped": lambda: rows.batch(size).map(lambda *batch: batch),
            "filtered": lambda: rows.batch(size).filter(lambda *batch: True),
        }
        return make[self.pick(*make)]()

    def fit_on_datasets(self, model: Any, x: Any, y: Any, arguments: dict[str, Any], callbacks: list[Any]) -> Any:
        """Train on a Dataset in place of arrays, or validate on one, or both."""
        if self.chance(0.15):
            y = self.pick(("a row less", y[:-1]), ("a column more", np.stack([y, y], axis=-1)))[1]
        validation = arguments.get("validation_data")
        if validation is not None and self.chance(0.7):
            arguments["validation_data"] = self.dataset(*validation, size=self.pick(4, 8, 11))
            arguments.pop("validation_batch_size", None)
        if self.chance(0.2):
            return model.fit(x, y, callbacks=callbacks, **arguments)
        size, weights = arguments.pop("batch_size"), arguments.pop("sample_weight", None)
        if self.chance(0.8):  # Keras refuses it otherwise
            arguments.pop("validation_split", None)
        data = self.dataset(*((x, y) if weights is None else (x, y, weights)), size=size)
        if self.chance(0.2):
            data, arguments["steps_per_epoch"] = data.repeat(), self.pick(2, 5)
        return model.fit(data, callbacks=callbacks, **arguments)

    def run(self, mode: str) -> tuple[dict[str, Any], Any]:
        """Return all that a run in a mode leaves, and its report."""
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(self.seed % 1000)
        self.draw.seed(self.seed)
        self.notes.clear()
        found: dict[str, Any] = {}
        with compiled_fit(mode) as report:
            try:
                self._live(found)
            except Exception as error:  # the same one is to come in both
                found["error"] = f"{type(error).__name__}: {str(error)[:80]}"
        return found, report

    def _live(self, found: dict[str, Any]) -> None:
        n_out, last, loss, metrics, targets = self.task()
        model, features = self.model(n_out, last)
        generator = np.random.default_rng(self.seed)
        x, y = features(generator), targets(generator)
        if isinstance(x, np.ndarray) and self.chance(0.2):
            x = x.astype("float64")
            self.notes.append("float64")
        chosen = self.draw.sample(metrics, self.draw.randint(0, 2))
        given = [one if isinstance(one, str) else one() for one in chosen]
        self.notes.extend(one if isinstance(one, str) else one.name for one in given)
        compiled = {
            "optimizer": self.optimizer(),
            "loss": loss,
            "weighted_metrics" if self.chance(0.15) else "metrics": given,
            "steps_per_execution": 1 if self.for_xla else self.pick(1, 1, 1, 1, 1, 1, 3),
        }
        model.compile(**compiled)
        seen: list[Any] = []
        for number in range(self.draw.randint(1, 4)):
            begins = number == 0 and (self.for_xla or self.chance(0.9))
            call = "fit" if begins else self.pick("fit", "fit", "evaluate", "predict", "thaw")
            size = self.draw.choice([3, 5, 16, 32])
            try:
                found.update(
                    (f"{number} {name}", value) for name, value in self._call(call, model, x, y, size, seen).items()
                )
            except Exception as error:
                if not self.with_datasets:
                    raise
                found[f"{number} error"] = f"{type(error).__name__}: {str(error)[:80]}"
        found["evaluate"] = model.evaluate(x, y, verbose=0, return_dict=True)
        found["predict"] = model.predict(x, verbose=0)
        found["weights"] = model.get_weights()
        found["optimizer"] = [keras.ops.convert_to_numpy(one) for one in model.optimizer.variables]
        found["metrics"] = [keras.ops.convert_to_numpy(one) for one in model.metrics_variables]
        found["seen"] = seen

    def _call(self, call: str, model: Any, x: Any, y: Any, size: int, seen: list[Any]) -> dict[str, Any]:
        if call == "fit":
            arguments, callbacks = self.fit_arguments(x, y, has_one_output=True), self.callbacks(seen)
            if self.with_datasets:
                history = self.fit_on_datasets(model, x, y, arguments, callbacks)
            else:
                history = model.fit(x, y, callbacks=callbacks, **arguments)
            return {"history": history.history, "epochs": history.epoch}
        if call == "evaluate":
            if self.with_datasets and self.chance(0.6):
                return {"evaluate": model.evaluate(self.dataset(x, y, size=size), verbose=0)}
            return {"evaluate": model.evaluate(x, y, batch_size=size, verbose=0)}
        if call == "predict":
            rows = self.draw.choice([10, 15, N_ROWS])
            x_some = keras.tree.map_structure(lambda one: one[:rows], x)
            if self.with_datasets and self.chance(0.3):
                return {"predict": model.predict(self.dataset(x_some, size=size), verbose=0)}
            return {"predict": model.predict(x_some, batch_size=size, verbose=0)}
        model.layers[0].trainable = not model.layers[0].trainable
        return {}
