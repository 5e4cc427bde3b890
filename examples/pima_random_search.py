"""Draw ten combinations from distributions and tune a Keras classifier on the Pima Indians data."""

from pathlib import Path

import numpy
from keras import Input, Sequential
from keras.layers import Dense
from scikeras.wrappers import KerasClassifier
from scipy.stats import randint
from sklearn.model_selection import train_test_split

from gridfleet import RandomizedSearchCV  # the one changed line


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

distributions = dict(
    batch_size=randint(16, 65),
    model__optimizer=["adam", "rmsprop", "sgd"],
    model__units=randint(4, 33),
)
model = KerasClassifier(model=create_model, epochs=20, verbose=0, random_state=42)
search = RandomizedSearchCV(
    estimator=model, param_distributions=distributions, n_iter=10, n_jobs=-1, cv=3, random_state=42
)
result = search.fit(X_train, y_train)

print("best score: %f, best params: %s" % (result.best_score_, result.best_params_))
print("score on the held-out part: %f" % result.score(X_test, y_test))
