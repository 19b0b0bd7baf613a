"""What `llmesh doctor` looks at: the machine, the files of a node, and the node itself if it runs."""

from llmesh.node.checks.finding import Finding, Level

__all__ = ["Finding", "Level"]
