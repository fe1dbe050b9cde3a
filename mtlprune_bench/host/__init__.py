"""The plugin host: hook specifications, and the registry of everything with a name."""
