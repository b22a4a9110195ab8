"""Which worker to call and what lives where: the use cases behind PlacementService."""
