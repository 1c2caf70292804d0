"""Getting work onto a cluster. Knows workloads by name only, and never imports torch."""
