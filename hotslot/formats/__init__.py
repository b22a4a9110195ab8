"""Formats of files and of what is digested: safetensors headers, specs, manifests."""
