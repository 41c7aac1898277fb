"""What is configured and where it came from: the table of settings, the file, the environment."""
