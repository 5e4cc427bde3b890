"""Model functions that the search files of this folder name."""

from keras import Input, Sequential
from keras.layers import Dense


def create_pima_model(optimizer="adam"):
    model = Sequential()
    model.add(Input(shape=(8,)))
    model.add(Dense(12, activation="relu"))
    model.add(Dense(1, activation="sigmoid"))
    model.compile(loss="binary_crossentropy", optimizer=optimizer, metrics=["accuracy"])
    return model
