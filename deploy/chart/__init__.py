"""The Helm chart, made from the kustomize base and its overlays, which stay the one source."""
