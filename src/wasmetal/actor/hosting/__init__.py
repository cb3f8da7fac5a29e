"""Many actors on one machine, of which a few are awake: :class:`ActorHost`."""

from wasmetal.actor.hosting.actor_type import ActorType
from wasmetal.actor.hosting.host import ActorHost
from wasmetal.actor.hosting.reply import PendingReply
from wasmetal.actor.hosting.stats import HostStats

__all__ = ["ActorHost", "ActorType", "HostStats", "PendingReply"]
