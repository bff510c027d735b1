"""What lists, shards and remote places cost."""
