"""Where a checkpoint's bytes come from: local files and hubs, read in ranges."""
