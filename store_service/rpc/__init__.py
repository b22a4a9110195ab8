"""The store's gRPC edge: messages in, one call, messages out."""
