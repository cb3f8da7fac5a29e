"""Figures for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

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
        self._between = Histogram(
            "wasmetal_time_between_tokens_seconds", "Between two tokens of a completion.", ["model"],
            buckets=_BETWEEN, registry=registry,
        )  # fmt: skip
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
        between = self._between.labels(model)
        for _ in range(count):
            between.observe(seconds / count)

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
