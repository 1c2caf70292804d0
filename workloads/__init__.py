"""What runs on Ray. Each file that defines a `Config` is one kind of work: `workload: denoise` is
`workloads/denoise.py`."""
