"""Checks of the nodes and programs that announce themselves, and of the topics between them. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from itertools import islice

from msight_bus.announcements import NodeInfo, NodeStatus
from msight_bus.doctor.evidence import Evidence, Finding, Seen, matches
from msight_bus.errors import counted
from msight_bus.patterns import is_pattern

_AHEAD, _BEHIND = 0.1, 2.0
"""Seconds by which a host's clock is ahead or behind: a heartbeat never arrives before it was published, and can be delayed."""

_MOST_SILENT = 20
"""Maximum number of topics without messages that are listed."""


def ended_badly(evidence: Evidence) -> Iterator[Finding]:
    """Find nodes that are LOST or have an ERROR."""
    for info in filter(evidence.concerns, evidence.nodes):
        if info.status in (NodeStatus.LOST, NodeStatus.ERROR):
            yield Finding(
                "nodes",
                f"The node {info.name} on {info.host or 'an unknown host'} is {info.status}.",
                f"Read the node's log on {info.host or 'its host'}, and start the node again.",
            )


def failing(evidence: Evidence) -> Iterator[Finding]:
    """Find running nodes that have counted errors: a fault if the node has published nothing, else a note."""
    for info in filter(evidence.concerns, evidence.running_nodes()):
        metrics = info.metrics
        for count, what, which in (
            (metrics.errors, "error", ""),
            (metrics.undecodable, "input", " that it could not decode"),
        ):
            if count:
                silent = info.output is not None and not metrics.messages_out
                yield Finding(
                    "errors",
                    f"The node {info.name} on {info.host or 'an unknown host'} has counted {counted(count, what)}{which} since "
                    f"its start{', and has published nothing' if silent else ''}.",
                    f"Read the node's log on {info.host or 'its host'}: the first error is logged with its traceback.",
                    fault=silent,
                )


def lost_programs(evidence: Evidence) -> Iterator[Finding]:
    """Find programs that ended without closing their bus. Each is a note, because a program may end at any time."""
    for info in filter(evidence.concerns, evidence.programs):
        if info.status is NodeStatus.LOST:
            yield Finding(
                "programs",
                f"The program {info.label} on {info.host or 'an unknown host'} is LOST.",
                f"If it should run, start it again on {info.host or 'its host'}.",
                fault=False,
            )


def same_name(evidence: Evidence) -> Iterator[Finding]:
    """Find running nodes with one name and different configurations: the workers of a group share name and configuration."""
    named: dict[str, dict[tuple[object, ...], NodeInfo]] = defaultdict(dict)
    for info in filter(evidence.concerns, evidence.running_nodes()):
        named[info.name][info.type, info.inputs, info.output, info.group_id] = info
    for name, different in named.items():
        if len(different) > 1:
            each = [f"{one.type} on {one.host}: {_path(one)}" for one in different.values()]
            problem = f"{len(different)} different nodes are named {name} ({'; '.join(each[:5])})."
            yield Finding("names", problem, f'Rename one of them: `NodeConfig(name="{name}-2", ...)`.')


def same_instance_id(evidence: Evidence) -> Iterator[Finding]:
    """Find running nodes with one name and one ``instance_id``, which must be unique among the workers of a node."""
    named: dict[tuple[str, str], list[str]] = defaultdict(list)
    for info in filter(evidence.concerns, evidence.running_nodes()):
        if info.instance_id is not None:
            named[info.name, info.instance_id].append(info.host or "an unknown host")
    for (name, instance_id), hosts in named.items():
        if len(hosts) > 1:
            where = ", ".join(sorted(hosts)[:5])
            yield Finding(
                "instance ids",
                f"{len(hosts)} running nodes named {name} have the instance_id {instance_id} (on {where}).",
                f'Stop one of them, or give each its own: `NodeConfig(name="{name}", instance_id="{instance_id}-2", ...)`.',
            )


def _path(info: NodeInfo) -> str:
    group = f" in group {info.group_id}" if info.group_id else ""
    return f"{', '.join(info.inputs) or 'no input'} -> {info.output or 'no output'}{group}"


def clocks(evidence: Evidence) -> Iterator[Finding]:
    """Find hosts whose clock differs from this machine's."""
    for host, late in evidence.clocks.items():
        if late < -_AHEAD or late > _BEHIND:
            yield Finding(
                "clocks",
                f"The clock of {host} is {abs(late):,.1f} s {'ahead of' if late < 0 else 'behind'} the clock of this machine; "
                "latencies and `lifespan` are wrong by that.",
                f"Synchronize the clock on {host}: `timedatectl set-ntp true`.",
            )


def unpublished(evidence: Evidence) -> Iterator[Finding]:
    """Find inputs on which nothing is published where a published topic differs by one letter."""
    published = {topic for info in evidence.running() for topic in info.outputs} | {
        topic for topic, seen in evidence.seen.items() if seen.messages
    }
    inputs = dict.fromkeys(evidence.topics, "the command line")
    inputs |= {
        entry: f"the {'node' if isinstance(info, NodeInfo) else 'program'} {info.label}"
        for info in filter(evidence.concerns, evidence.running())
        for entry in info.inputs
    }
    for entry, where in inputs.items():
        if is_pattern(entry) or entry in published:
            continue
        similar = sorted(topic for topic in published if differs_by_a_letter(entry, topic))
        if similar:
            problem = (
                f"No publisher of {entry} (from {where}) is known; {similar[0]}, which differs by one letter, has one."
            )
            advice = f"If {entry} is misspelt, replace it by {similar[0]} in {where}; otherwise start its publisher."
            yield Finding("topics", problem, advice, about=entry)


def differs_by_a_letter(one: str, other: str) -> bool:
    """Return whether one letter is replaced, added or removed, or letters differ by case only."""
    if one == other or abs(len(one) - len(other)) > 1:
        return False
    short, long = sorted((one, other), key=len)
    at = next((n for n, (a, b) in enumerate(zip(short, long, strict=False)) if a != b), len(short))
    return one.lower() == other.lower() or short[at + (len(short) == len(long)) :] == long[at + 1 :]


def silent(evidence: Evidence) -> Iterator[Finding]:
    """Find topics on which no message arrived: faults for topics of the command line; without any, notes for inputs of nodes."""
    if evidence.topics:
        silence = [_silence(evidence, topic, "") for topic in evidence.topics]
    else:
        inputs = {
            entry: info.name for info in evidence.running_nodes() for entry in info.inputs if not is_pattern(entry)
        }
        silence = [_silence(evidence, topic, f", the input of the node {name},") for topic, name in inputs.items()]
    yield from islice(filter(None, silence), _MOST_SILENT)


def _silence(evidence: Evidence, topic: str, where: str) -> Finding | None:
    if any(matches(topic, one) and seen.messages for one, seen in evidence.seen.items()):
        return None
    publishers, _ = ends(evidence, topic)
    who = f"{', '.join(publishers)} should publish on it" if publishers else "no known node or program publishes on it"
    problem = f"No message arrived on {topic}{where} in {evidence.seconds:g} s; {who}."
    pub = f"`msight-bus pub {'TOPIC' if is_pattern(topic) else topic} --text hello` publishes a message."
    advice = f"Start its publisher with {evidence.settings.address} as broker; {pub}"
    if publishers:
        advice = (
            f"Read the log of {publishers[0]}; `msight-bus doctor --message-bytes N` checks the size of its messages."
        )
    return Finding("arrival", problem, advice, fault=bool(evidence.topics), about=topic)


def ends(evidence: Evidence, topic: str) -> tuple[list[str], list[str]]:
    """Return the running nodes and programs that publish on a topic or pattern, and those that subscribe to it."""
    running = list(evidence.running())
    publishers = {info.label for info in running if any(matches(topic, one) for one in info.outputs)}
    return sorted(publishers), sorted(
        {info.label for info in running if any(matches(entry, topic) for entry in info.inputs)}
    )


def total(seen: Collection[Seen]) -> Seen:
    """Return the messages of several topics together."""
    return Seen(
        sum([one.messages for one in seen]),
        sum([one.keyed for one in seen]),
        max([one.largest for one in seen], default=0),
        set().union(*[one.sessions for one in seen]),
    )
