"""Check that messages published at a Redis server reach the other servers. Pure.

A replica, a node outside its cluster and a Sentinel accept messages and do not distribute them. A restricted user may
lack permission for some commands: an error reply gives no information and is ignored. Source: the Redis documentation
of ROLE, INFO and CLUSTER INFO.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msight_bus.errors import quoted

_PREFIX = "MSIGHT_REDIS_MESSAGE_BROKER_"
_DISABLED = "cluster support disabled"
_INSTEAD = "connect to the master, or to a name or proxy that follows the master (Redis Sentinel is not supported)"
_REPLICA = (b"slave", b"replica")

REPLIES = 3
"""Number of replies to `health_commands`."""


def health_commands() -> bytes:
    """Return the commands ROLE, INFO replication and CLUSTER INFO as bytes; they have `REPLIES` replies."""
    return (
        b"*1\r\n$4\r\nROLE\r\n"
        b"*2\r\n$4\r\nINFO\r\n$11\r\nreplication\r\n"  # the same information for users without permission for ROLE
        b"*2\r\n$7\r\nCLUSTER\r\n$4\r\nINFO\r\n"
    )


def subscribers_command(channel: bytes) -> bytes:
    """Return the command PUBSUB NUMSUB as bytes: its reply is the channel and the number of its subscribers at this server."""
    return b"*3\r\n$6\r\nPUBSUB\r\n$6\r\nNUMSUB\r\n$%d\r\n%b\r\n" % (len(channel), channel)


@dataclass(frozen=True)
class Health:
    """The expected role of a server, from the settings.

    Attributes:
        use_cluster: whether the servers are nodes of a cluster.
        nodes: number of configured nodes.
    """

    use_cluster: bool
    nodes: int

    def problem(self, replies: Sequence[object]) -> str | None:
        """Return why messages published at this server do not reach the others; None if they do, or if unknown.

        Args:
            replies: the replies to `health_commands`, in order; an error reply as an exception, a string as bytes.
        """
        role, replication, cluster = replies
        clustered, state = _cluster(cluster)
        if isinstance(role, list) and role[:1] == [b"sentinel"]:
            return f"it is a Sentinel, which does not distribute messages; {_INSTEAD}"
        if self.use_cluster and clustered is False:
            return f"it is a standalone server (cluster_enabled:0), but {_PREFIX}USE_CLUSTER is true; set it to false"
        if clustered:
            alone = state.get("cluster_known_nodes") == "1"
            if state.get("cluster_state") == "fail" and (self.use_cluster or not alone):
                return "its cluster has failed (cluster_state:fail), so messages may not reach the other nodes"
            if self.use_cluster and alone and self.nodes > 1:
                return "it is in no cluster with other nodes (cluster_known_nodes:1)"
            return None
        master = _master(role, replication)
        if master is not None and not self.use_cluster:
            return f"it is a replica of {master}, and messages published here do not reach the master; {_INSTEAD}"
        return None

    def is_alone(self, replies: Sequence[object]) -> bool:
        """Return whether no other server has subscribers; then the number of subscribers of this server is complete.

        Args:
            replies: as for `problem`.
        """
        clustered, state = _cluster(replies[-1])
        if clustered:
            return state.get("cluster_known_nodes") == "1"
        return clustered is False or not self.use_cluster


def _cluster(reply: object) -> tuple[bool | None, dict[str, str]]:
    """Return whether cluster mode is on (None: unknown), and the fields of CLUSTER INFO."""
    if isinstance(reply, Exception):
        return (False if _DISABLED in str(reply).lower() else None), {}
    state = _fields(reply)
    return (True if "cluster_state" in state else None), state


def _master(role: object, replication: object) -> str | None:
    """Return the address of the master if the server is a replica, else None."""
    if isinstance(role, list) and len(role) >= 3 and role[0] in _REPLICA:
        host, port = role[1], role[2]
    elif (fields := _fields(replication)).get("role", "").encode() in _REPLICA:
        host, port = fields.get("master_host", "?"), fields.get("master_port", "?")
    else:
        return None
    return f"{quoted(host, 100)}:{quoted(port, 10)}"


def _fields(reply: object) -> dict[str, str]:
    """Parse the ``name:value`` lines of an INFO reply; empty for an error reply."""
    if not isinstance(reply, bytes):
        return {}
    pairs = (line.partition(":") for line in reply.decode("utf-8", "replace").splitlines())
    return {name: value for name, colon, value in pairs if colon}
