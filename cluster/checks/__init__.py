"""What can be said of a file that launches a cluster, before it costs anything: one module for each kind of file."""
