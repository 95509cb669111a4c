"""What Prometheus reads of a serving process: requests by outcome, their seconds, the model and its changes."""

import time
from collections.abc import Iterator
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from recsys.served_model import Source

Outcome = Literal["answered", "empty", "refused", "unavailable", "failed"]
"""empty: no item was left; refused: the request is wrong; unavailable: there is no model; failed: a defect of ours."""

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)


class WebMetrics:
    """The metrics of one app, in a registry of their own."""

    def __init__(self, source: Source) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._registry.register(_FollowerMetrics(source))
        self._requests = Counter(
            "recsys_requests", "Requests by page and outcome", ["page", "outcome"], registry=self._registry
        )
        self._seconds = Histogram(
            "recsys_request_seconds", "Seconds of a request", ["page"], buckets=_SECONDS, registry=self._registry
        )
        self._fallbacks = Counter(
            "recsys_fallbacks", "Questions answered by popularity, nothing being known of the user",
            registry=self._registry,
        )  # fmt: skip

    def count(self, page: str, outcome: Outcome, seconds: float) -> None:
        """One request."""
        self._requests.labels(page, outcome).inc()
        self._seconds.labels(page).observe(seconds)

    def count_fallbacks(self, questions: int) -> None:
        """So many questions were answered by popularity."""
        self._fallbacks.inc(questions)

    def text(self) -> bytes:
        """In Prometheus' own format."""
        return generate_latest(self._registry)


class _FollowerMetrics(Collector):
    """Read from the source when Prometheus asks."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def collect(self) -> Iterator[Metric]:
        model, standing = self._source.current(), self._source.standing()
        info = GaugeMetricFamily("recsys_model_info", "The model that is served", labels=["version", "digest"])
        if model is not None:
            info.add_metric([str(model.version), model.digest], 1)
            if model.as_of is not None:
                yield GaugeMetricFamily("recsys_model_as_of_seconds", "Its as-of time", value=model.as_of)
        yield info
        yield CounterMetricFamily("recsys_model_swaps", "Models that replaced another", value=standing.swaps)
        yield CounterMetricFamily("recsys_model_refused", "Champions that failed their check", value=standing.refused)
        state = GaugeMetricFamily("recsys_registry_state", "1 for the state that holds", labels=["state"])
        state.add_metric([standing.state], 1)
        yield state
        if standing.answered is not None:
            since = max(0.0, time.time() - standing.answered)
            yield GaugeMetricFamily("recsys_registry_seconds_since_poll", "Since the registry answered", value=since)
