"""What the client takes and returns: frozen dataclasses, no protobuf."""
