"""Figures for Prometheus."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from wasmetal.counters import Counters
from wasmetal.models import Embedder, Model
from wasmetal.serve.energy import Meter, meters

_FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
    """The server's figures. Safe to use from several threads."""

    def __init__(self) -> None:
        self.drawn = 0
        """Tokens of completions, of all models."""
        self.registry = registry = CollectorRegistry()
        per_key = ["model", "key"]
        self._requests = Counter(
            "wasmetal_requests", "Requests, by their path, status (499: the client went away) and key.",
            ["path", "status", "key"], registry=registry,
        )  # fmt: skip
        self._prompt = Counter("wasmetal_prompt_tokens", "Tokens of prompts.", per_key, registry=registry)
        self._cached = Counter(
            "wasmetal_prompt_tokens_cached", "Tokens of prompts that were not run, since they had been.", per_key,
            registry=registry,
        )  # fmt: skip
        self._drawn = Counter("wasmetal_completion_tokens", "Tokens of completions.", per_key, registry=registry)
        self._first = Histogram(
            "wasmetal_time_to_first_token_seconds", "From a request's arrival to its first token.", ["model"],
            buckets=_FIRST, registry=registry,
        )  # fmt: skip
        self._between = _Between()
        registry.register(self._between)
        self._queued = Histogram(
            "wasmetal_queue_seconds", "From a request's arrival until its completion begins.", ["model"],
            buckets=_FIRST, registry=registry,
        )  # fmt: skip
        self._copied = Counter(
            "wasmetal_bytes_copied", "Tensor bytes copied between guests, host and device.", ["model"],
            registry=registry,
        )  # fmt: skip
        self._device = Counter(
            "wasmetal_device_seconds", "Time of the device that completions took.", per_key, registry=registry
        )
        self._failed = Counter("wasmetal_completions_failed", "Guests that failed.", ["model"], registry=registry)

    def watch(
        self, running: Callable[[], int], waiting: Callable[[], int], models: Mapping[str, Model | Embedder]
    ) -> None:
        """Ask these whenever the figures are wanted."""
        for name, text, ask in (
            ("wasmetal_completions_running", "Completions that run.", running),
            ("wasmetal_completions_waiting", "Completions that wait for their turn.", waiting),
            ("wasmetal_models_loaded", "Models that are loaded.", models.__len__),
        ):
            Gauge(name, text, registry=self.registry).set_function(ask)
        self.registry.register(_Batches(models))
        self.registry.register(_Energy(meters()))
        for name in models:
            self._copied.labels(name)
            self._failed.labels(name)

    def request(self, path: str, status: int, key: str) -> None:
        """A request has been answered. ``key``: the name of its key, here and below."""
        self._requests.labels(path, status, key).inc()

    def prompt(self, model: str, key: str, tokens: int) -> None:
        """A completion of a prompt with so many tokens begins."""
        self._prompt.labels(model, key).inc(tokens)

    def began(self, model: str, seconds: float) -> None:
        """A completion has waited so long for its turn."""
        self._queued.labels(model).observe(seconds)

    def cached(self, model: str, key: str, tokens: int) -> None:
        """So many tokens of a prompt were not run."""
        self._cached.labels(model, key).inc(tokens)

    def drew(self, model: str, key: str, tokens: int) -> None:
        """So many tokens were drawn."""
        self._drawn.labels(model, key).inc(tokens)
        self.drawn += tokens

    def pieces(self, model: str, seconds: float, count: int, *, first: bool) -> None:
        """So many tokens, or pieces of a guest's text, came together so long after those before them, or after the
        request if they are the first."""
        if first:
            self._first.labels(model).observe(seconds)
            count -= 1
            seconds = 0.0
        if count:
            self._between.observe(model, seconds, count)

    def ended(self, model: str, key: str, counters: Counters) -> None:
        """A completion's guest has ended, and this is what it has cost."""
        self._copied.labels(model).inc(counters.bytes_copied)
        self._device.labels(model, key).inc(counters.device_seconds)

    def failed(self, model: str) -> None:
        """A guest has failed."""
        self._failed.labels(model).inc()

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self.registry)


class _Between(Collector):
    """The histogram of times between tokens. The library's takes as long for each token as all else that is counted."""

    def __init__(self) -> None:
        self._counts: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}
        self._lock = threading.Lock()

    def observe(self, model: str, seconds: float, count: int) -> None:
        """So many tokens have taken so long together."""
        with self._lock:
            counts = self._counts.setdefault(model, [0] * (len(_BETWEEN) + 1))
            counts[bisect_left(_BETWEEN, seconds / count)] += count
            self._sums[model] = self._sums.get(model, 0.0) + seconds

    def collect(self) -> Iterator[Metric]:
        """It, for each model."""
        text = "Between two tokens of a completion. Those that come together are taken to be evenly spaced."
        histogram = HistogramMetricFamily("wasmetal_time_between_tokens_seconds", text, labels=["model"])
        bounds = [*map(floatToGoString, _BETWEEN), "+Inf"]
        with self._lock:
            for model, counts in self._counts.items():
                buckets = list(zip(bounds, accumulate(counts), strict=True))
                histogram.add_metric([model], buckets, self._sums[model])
        yield histogram


class _Energy(Collector):
    """What processors and GPUs have consumed."""

    def __init__(self, known: Sequence[Meter]) -> None:
        self._meters = known

    def collect(self) -> Iterator[Metric]:
        """What they tell; nothing where none does."""
        text = "Joules of a processor or GPU, whoever uses it, since the server began."
        joules = CounterMetricFamily("wasmetal_energy_joules", text, labels=["source"])
        for meter in self._meters:
            with suppress(OSError):
                joules.add_metric([meter.name], meter.joules())
        if joules.samples:
            yield joules


class _Batches(Collector):
    """The size of batches: jobs by submissions; and how full KV caches are."""

    def __init__(self, models: Mapping[str, Model | Embedder]) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        """What the models know."""
        cache = GaugeMetricFamily("wasmetal_kv_cache_bytes", "Bytes of the KV cache in use.", labels=["model"])
        batches = CounterMetricFamily("wasmetal_batches", "Forward passes submitted.", labels=["model"])
        jobs = CounterMetricFamily(
            "wasmetal_batched", "Completions in them, all together: by batches, the mean size.", labels=["model"]
        )
        for name, model in list(self._models.items()):
            if not isinstance(model, Model):
                continue
            batches.add_metric([name], model.batches.submitted)
            jobs.add_metric([name], model.batches.jobs)
            cache.add_metric([name], model.cache.held * model.cache.page_bytes)
        yield from (batches, jobs, cache)
