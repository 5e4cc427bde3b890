"""Tune a Keras classifier on the Pima Indians data by successive halving: all get few epochs, the best ones many."""

from pathlib import Path

import numpy
from keras import Input, Sequential
from keras.layers import Dense
from scikeras.wrappers import KerasClassifier
from sklearn.model_selection import train_test_split

from gridfleet import HalvingGridSearchCV


def create_model(units=12, optimizer="adam"):
    model = Sequential()
    model.add(Input(shape=(8,)))
    model.add(Dense(units, activation="relu"))
    model.add(Dense(1, activation="sigmoid"))
    model.compile(loss="binary_crossentropy", optimizer=optimizer, metrics=["accuracy"])
    return model


data_file = Path(__file__).parent.parent / "data" / "pima-indians-diabetes.csv"
dataset = numpy.loadtxt(data_file, delimiter=",")
X, Y = dataset[:, 0:8], dataset[:, 8]
X_train, X_test, y_train, y_test = train_test_split(X, Y, test_size=0.33, random_state=42)

param_grid = dict(
    batch_size=[16, 32, 64],
    model__optimizer=["adam", "rmsprop", "sgd"],
    model__units=[4, 12, 32],
)
model = KerasClassifier(model=create_model, verbose=0, random_state=42)
search = HalvingGridSearchCV(
    model,
    param_grid,
    factor=3,
    resource="epochs",
    min_resources=2,
    max_resources=54,
    cv=3,
    n_jobs=-1,
    name="pima-halved",
)
result = search.fit(X_train, y_train)

print("candidates in each round: %s, their epochs: %s" % (result.n_candidates_, result.n_resources_))
print("best score: %f, best params: %s" % (result.best_score_, result.best_params_))
print("score on the held-out part: %f" % result.score(X_test, y_test))
