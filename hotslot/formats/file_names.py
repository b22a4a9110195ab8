"""Names of files that clients and services both read or write."""

import re

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILES = ("adapter_model.safetensors", "adapters.safetensors")
"""Names of an adapter's weights in PEFT and MLX; the first that is there is taken alone."""
WEIGHTS_FILE = WEIGHTS_FILES[0]
CHECKPOINT_FILES = (CONFIG_FILE, *WEIGHTS_FILES)
SHARD = re.compile(r"adapter_model-(\d{5})-of-(\d{5})\.safetensors")
"""Weights in several files: the number of one, and of all."""
MAX_SHARDS = 60
INDEX_FILE = "adapter_model.safetensors.index.json"
"""Names the files of weights in several files."""
SIGNATURE_FILE = "model.sig"
"""Signature of a checkpoint's folder, as OpenSSF's model signing calls it."""
CATALOG_FILE = "catalog.sqlite3"
"""Catalog in a store's data folder, and in a backup."""
