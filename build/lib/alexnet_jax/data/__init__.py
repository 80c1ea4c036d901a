"""Images into shards, shards into batches."""
