"""Where spawners keep users' storage, and whose it is."""
