"""Tune a Keras classifier on the Pima Indians data: scikit-learn's grid search, on a fleet."""

from pathlib import Path

import numpy
from keras import Input, Sequential
from keras.layers import Dense
from scikeras.wrappers import KerasClassifier
from sklearn.model_selection import train_test_split

from gridfleet import GridSearchCV  # the one changed line


def create_model(optimizer="adam"):
    model = Sequential()
    model.add(Input(shape=(8,)))
    model.add(Dense(12, activation="relu"))
    model.add(Dense(1, activation="sigmoid"))
    model.compile(loss="binary_crossentropy", optimizer=optimizer, metrics=["accuracy"])
    return model


data_file = Path(__file__).parent.parent / "data" / "pima-indians-diabetes.csv"
dataset = numpy.loadtxt(data_file, delimiter=",")
X, Y = dataset[:, 0:8], dataset[:, 8]
X_train, X_test, y_train, y_test = train_test_split(X, Y, test_size=0.33, random_state=42)

model = KerasClassifier(model=create_model, epochs=100, batch_size=10, verbose=0, random_state=42)
# model__ is scikeras' way to say "for create_model": a plain `optimizer` it would keep to itself
grid = GridSearchCV(estimator=model, param_grid=dict(model__optimizer=["adam", "rmsprop"]), n_jobs=-1, cv=3)
result = grid.fit(X_train, y_train)

print("best score: %f, best params: %s" % (result.best_score_, result.best_params_))
print("score on the held-out part: %f" % result.score(X_test, y_test))
