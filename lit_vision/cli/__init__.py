"""The `lit-vision` commands: one file a command. Only this room parses command lines."""
