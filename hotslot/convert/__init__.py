"""Between protobuf messages and the client's own types; the only place in the client that sees both."""
