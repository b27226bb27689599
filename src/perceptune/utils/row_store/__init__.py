"""An append-only store of tensor rows by key, shared by processes without a lock."""
