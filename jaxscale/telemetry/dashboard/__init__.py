"""A page of all runs below a directory, served to a browser on this machine; it only reads."""
