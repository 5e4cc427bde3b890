"""A script on the host, outside the containers: queues a search over the ports that compose publishes on 127.0.0.1."""

import argparse
from pathlib import Path

import numpy as np
from sklearn.ensemble import GradientBoostingClassifier

from gridfleet import GridSearchCV, open_search, submit

DATA = Path(__file__).parents[2] / "data" / "pima-indians-diabetes.csv"

parser = argparse.ArgumentParser()
parser.add_argument("name")
parser.add_argument("--trials", type=int, required=True)
parser.add_argument("--trees", type=int, required=True, help="100 take about a third of a second per split")
parser.add_argument("--timeout", type=float, default=300, help="seconds")
arguments = parser.parse_args()

dataset = np.loadtxt(DATA, delimiter=",")
grid = {"learning_rate": np.linspace(0.01, 0.2, arguments.trials).tolist()}
search = GridSearchCV(GradientBoostingClassifier(n_estimators=arguments.trees, random_state=0), grid, cv=3)
submit(search, dataset[:, :8], dataset[:, 8], name=arguments.name)
print(f"queued {arguments.name}", flush=True)

handle = open_search(arguments.name)
handle.wait(timeout=arguments.timeout)
print(f"best score: {handle.best_score_:f}, best params: {handle.best_params_}")
