"""Everything that is true without Ray: raw files and operations, models, losses, data, training, bundles, inference."""
