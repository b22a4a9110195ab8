"""The gateway: OpenAI's HTTP over hotslot's Python client."""
