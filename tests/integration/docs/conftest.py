"""Node's packages, for the examples in JavaScript."""

from tests.integration.node.conftest import node_program

__all__ = ["node_program"]
