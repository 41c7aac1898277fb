"""What makes processes a cluster: hub, supervisor, configuration, the command line."""
