"""What touches the machine: files, screen, environment, and code that the user names."""
