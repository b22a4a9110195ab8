"""The controller of Adapter resources: writes to the store what a Kubernetes cluster's users want there.

Decisions: docs/decisions/controller.md, and those of the manifests: docs/decisions/kubernetes.md
"""
