"""The application on Ray Serve: several replicas, each with a device of its own, behind one address.

Ray's proxy spreads requests over the replicas; those of one conversation, which a header names, go to the same one,
which has the conversation's beginning in its KV cache. Ray starts those again that die or are not well, and replaces
them one after the other when an application of the same name is deployed again: requests that run are finished, others
wait.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from starlette.applications import Starlette

from wasmetal.errors import WasmetalError, setting_up
from wasmetal.serve.recipe import Recipe

NAME = "wasmetal"
"""Of the application, in Ray Serve."""
_HEALTH_SECONDS = 10
"""Between two looks at a replica."""
_ENDING_SECONDS = 10
"""That a replica has beyond those that its requests get to finish."""


_ROUTER = "ray.serve.experimental.consistent_hash_router:ConsistentHashRouter"
"""By the header X-Session-Id, with consistent hashing: when a replica comes or goes, the others keep what is theirs."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How many replicas there are."""

    replicas: int | None = None
    """Always so many; None: one for each GPU of the cluster, or one."""
    least: int | None = None
    most: int | None = None
    """From ``least`` (one, if it is None) to ``most``, as requests come; None: always as many."""
    ongoing: float | None = None
    """Requests of a replica that Ray aims at; None: as many as run at a time."""

    def options(self, gpus: int, running: int) -> dict[str, Any]:
        """Of the deployment, in a cluster with so many GPUs. ``running``: completions of a replica at a time."""
        if self.most is None:
            return {"num_replicas": self.replicas or gpus or 1}
        autoscaling = AutoscalingConfig(
            min_replicas=1 if self.least is None else self.least,
            max_replicas=self.most,
            target_ongoing_requests=self.ongoing or running,
        )
        return {"autoscaling_config": autoscaling}


class Replica:
    """What each replica is."""

    def __init__(self, recipe: Recipe) -> None:
        self._stack = ExitStack()
        self._made = recipe.make(self._stack)

    def __serve_build_asgi_app__(self) -> Starlette:
        """For Ray Serve."""
        return self._made

    def check_health(self) -> None:
        """For Ray Serve. Raises DeviceError if the device is lost."""
        self._made.state.engine.check_health()

    def __del__(self) -> None:
        self._stack.close()


@contextmanager
def on_ray(recipe: Recipe, host: str, port: int, scale: Scale) -> Iterator[bool]:
    """Deploy the application, or a newer version of it, to the cluster that RAY_ADDRESS names, or to a new one.

    Yields, once all replicas are there, whether the cluster is a new one, which ends with the context. Raises
    WasmetalError.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    begun = not os.environ.get("RAY_ADDRESS")
    with setting_up("connect to Ray"):
        # A new cluster is for this machine alone.
        local = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"} if begun else {}
        ray.init(log_to_driver=False, configure_logging=False, **local)
    try:
        gpus = int(ray.cluster_resources().get("GPU", 0)) if recipe.device != "cpu" else 0
        deployment = serve.deployment(
            serve.ingress()(Replica),
            name="replica",
            request_router_config=RequestRouterConfig(request_router_class=_ROUTER),
            max_ongoing_requests=recipe.limits.connections,
            graceful_shutdown_timeout_s=recipe.limits.drain_seconds + _ENDING_SECONDS,
            health_check_period_s=_HEALTH_SECONDS,
            ray_actor_options={"num_gpus": 1, "num_cpus": 1} if gpus else {"num_cpus": 1},
            **scale.options(gpus, recipe.limits.running),
        )
        serve.start(http_options={"host": host, "port": port})
        try:
            serve.run(deployment.bind(recipe), name=NAME, route_prefix="/")
        except Exception as error:
            raise WasmetalError(f"Ray Serve could not start the replicas: {error}") from error
        yield begun
    finally:
        if begun:
            serve.delete(NAME)  # which lets running requests finish
        ray.shutdown()
