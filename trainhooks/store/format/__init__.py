"""What lies on disk: layout, schema, journal, shards, manifest and root (see `store/SPEC.md`)."""
