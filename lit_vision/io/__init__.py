"""Files, processes and texts: atomic writes, hashing, completion markers, parallel map."""
