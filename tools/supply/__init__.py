"""Supply chain: what the product depends on, under which licences, with which hashes and known weaknesses."""
