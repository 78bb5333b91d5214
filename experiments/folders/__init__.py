"""Run folders: names, identity, locks, caches."""
