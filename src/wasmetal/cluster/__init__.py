"""Actors on many machines: one :class:`ActorHost` on each node of a Ray cluster, over one store."""

from wasmetal.errors import ClusterError

try:
    import ray
except ImportError as error:
    raise ClusterError("clusters need the package ray: pip install 'wasmetal[cluster]'") from error
else:
    del ray

from wasmetal.cluster.client import Cluster, ClusterReply
from wasmetal.cluster.settings import ClusterSettings, ClusterType

__all__ = ["Cluster", "ClusterReply", "ClusterSettings", "ClusterType"]
