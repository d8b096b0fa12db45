"""Nodes: the steps of a pipeline. Each node is a class with one coroutine.

class Detector(ProcessingNode):
    async def process(self, data):
        return find_objects(data)

run_nodes(Detector(NodeConfig(name="detector", subscribe_topic_name="cam", publish_topic_name="objects")))
"""

from __future__ import annotations

from msight_bus.nodes.config import NodeConfig
from msight_bus.nodes.node import Node
from msight_bus.nodes.node_publisher import Outgoing
from msight_bus.nodes.processing import ProcessingNode, SinkNode
from msight_bus.nodes.running import run_nodes, run_until
from msight_bus.nodes.source import SourceNode
from msight_bus.off_loop import off_loop
from msight_bus.pacing import paced

__all__ = [
    "Node",
    "NodeConfig",
    "Outgoing",
    "ProcessingNode",
    "SinkNode",
    "SourceNode",
    "off_loop",
    "paced",
    "run_nodes",
    "run_until",
]
