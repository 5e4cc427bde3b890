"""``/metrics``: the fleet in Prometheus' words, read from SQL when it is asked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import GaugeMetricFamily, HistogramMetricFamily, Metric
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gridfleet.scheduler.reports.durations import BUCKETS_S, Durations
from gridfleet.scheduler.reports.numbers import Numbers, read_numbers
from gridfleet.scheduler.reports.plain import plain


class _Collected:
    """What a registry asks for."""

    def __init__(self, numbers: Numbers, durations: Mapping[str, Durations] | None) -> None:
        self._numbers = numbers
        self._durations = durations

    def collect(self) -> Iterable[Metric]:
        """Yield all metrics."""
        numbers = self._numbers
        by_name = {(plain(name), state): n for (name, state), n in numbers.trials.items()}
        scores = {(plain(name),): score for name, score in numbers.best_scores.items()}
        searches = {(state,): n for state, n in numbers.searches.items()}
        yield _gauge("trials", "Trials of searches that go on or ended in the last day.", by_name, "search", "state")
        yield _gauge("search_best_score", "The best mean test score of a search.", scores, "search")
        yield _gauge("searches", "Searches by what came of them.", searches, "state")
        yield _gauge("queued_trials", "Trials that wait for a worker.", {(): numbers.n_queued})
        yield _gauge("oldest_queued_trial_seconds", "For how long the first waits.", {(): numbers.oldest_queued_s})
        yield _gauge("workers", "Worker processes that were seen in the last minute.", {(): numbers.n_workers})
        if self._durations is not None:
            yield _histogram(self._durations)


def _histogram(by_outcome: Mapping[str, Durations]) -> Metric:
    text = "Seconds of the attempts that ended, by their outcome."
    metric = HistogramMetricFamily("gridfleet_trial_seconds", text, labels=["outcome"])
    for outcome, durations in by_outcome.items():
        counts = [(str(float(bound)), n) for bound, n in zip(BUCKETS_S, durations.up_to, strict=True)]
        metric.add_metric([outcome], [*counts, ("+Inf", durations.n)], durations.seconds)
    return metric


def _gauge(name: str, text: str, values: Mapping[Any, float], *labels: str) -> Metric:
    metric = GaugeMetricFamily(f"gridfleet_{name}", text, labels=labels)
    for of, value in values.items():
        metric.add_metric(of, value)
    return metric


def _metrics(request: Request) -> Response:
    registry = CollectorRegistry()
    state = request.app.state
    registry.register(_Collected(read_numbers(state.database), state.attempts.durations()))
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(registry), media_type=content_type)


ROUTES: list[BaseRoute] = [Route("/metrics", _metrics)]
