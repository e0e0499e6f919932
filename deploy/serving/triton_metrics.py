"""The runtime's metrics on Triton's own endpoint."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any

from trtstream.runtime.metrics import METRICS, PREFIX

PUBLISH_SECONDS = 1.0

logger = logging.getLogger(__name__)


class TritonMetrics:
    """A `Measure` that publishes what it takes every second, from a thread of its own, as an update takes some 20
    microseconds. ``family`` is Triton's ``pb_utils.MetricFamily``, ``model`` the model's name."""

    def __init__(self, family: Any, model: str) -> None:
        self._model = model
        self._families = {
            name: family(name=f"{PREFIX}{name}", description=metric.help, kind=getattr(family, metric.kind.upper()))
            for name, metric in METRICS.items()
        }
        self._metrics: dict[tuple[str, str], Any] = {}
        self._taken: deque[tuple[str, float, str]] = deque()
        for name, metric in METRICS.items():
            for label in metric.values or (() if metric.label else ("",)):
                self._metric(name, label)

    def __call__(self, metric: str, value: float = 1.0, label: str = "") -> None:
        self._taken.append((metric, value, label))

    def publish(self, gauges: dict[tuple[str, str], float]) -> None:
        """Hand Triton what was taken since the last time, and the gauges' values."""
        counts: dict[tuple[str, str], float] = defaultdict(float)
        while self._taken:
            name, value, label = self._taken.popleft()
            if METRICS[name].kind == "histogram":
                self._metric(name, label).observe(value)
            else:
                counts[name, label] += value
        for (name, label), value in counts.items():
            self._metric(name, label).increment(value)
        for (name, label), value in gauges.items():
            self._metric(name, label).set(value)

    def start(self, gauges: Callable[[], dict[tuple[str, str], float]]) -> None:
        """Publish from now on."""
        threading.Thread(target=self._run, args=(gauges,), name="trtstream-metrics", daemon=True).start()

    def _run(self, gauges: Callable[[], dict[tuple[str, str], float]]) -> None:
        while True:
            try:
                self.publish(gauges())
            except Exception:
                logger.exception("metrics are published no longer")
                self._taken = deque(maxlen=0)
                return
            time.sleep(PUBLISH_SECONDS)

    def _metric(self, name: str, label: str) -> Any:
        if (name, label) not in self._metrics:
            metric = METRICS[name]
            labels = {"model": self._model, **({metric.label: label} if metric.label else {})}
            options = {"buckets": list(metric.buckets)} if metric.buckets else {}
            self._metrics[name, label] = self._families[name].Metric(labels=labels, **options)
        return self._metrics[name, label]
