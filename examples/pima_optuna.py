"""Tune a Keras classifier on the Pima Indians data, each trial chosen by the results of those before it."""

from pathlib import Path

import numpy
from keras import Input, Sequential
from keras.layers import Dense
from scikeras.wrappers import KerasClassifier
from scipy.stats import loguniform, randint
from sklearn.model_selection import train_test_split

from gridfleet import OptunaSearchCV


def create_model(units=12):
    model = Sequential()
    model.add(Input(shape=(8,)))
    model.add(Dense(units, activation="relu"))
    model.add(Dense(1, activation="sigmoid"))
    return model


data_file = Path(__file__).parent.parent / "data" / "pima-indians-diabetes.csv"
dataset = numpy.loadtxt(data_file, delimiter=",")
X, Y = dataset[:, 0:8], dataset[:, 8]
X_train, X_test, y_train, y_test = train_test_split(X, Y, test_size=0.33, random_state=42)

distributions = dict(
    optimizer=["adam", "rmsprop"],
    optimizer__learning_rate=loguniform(1e-4, 1e-1),
    model__units=randint(4, 65),
)
model = KerasClassifier(
    model=create_model, loss="binary_crossentropy", epochs=20, batch_size=32, verbose=0, random_state=42
)
search = OptunaSearchCV(
    model, distributions, n_trials=20, sampler="tpe", lookahead=4, cv=3, random_state=42, n_jobs=-1, name="pima-tpe"
)
result = search.fit(X_train, y_train)

print("best score: %f, best params: %s" % (result.best_score_, result.best_params_))
print("score on the held-out part: %f" % result.score(X_test, y_test))
