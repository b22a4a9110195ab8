"""The contract: frozen types for the messages that people and services handle, without protobuf."""
