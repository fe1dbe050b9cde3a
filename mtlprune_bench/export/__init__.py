"""A finished run's network for use elsewhere: files, sizes, speed."""
