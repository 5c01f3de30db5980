"""What works on a machine and what will not, each finding with its fix."""
