"""What a sweep is made of: its space, its searchers, the ledger of its trials, their results, its page. Ray Tune, which
runs the trials, is known to `workloads/sweep.py` alone."""
