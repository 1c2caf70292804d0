"""What an evaluation is made of: its suites, what it compares, results, statistics, page. Actors are known to
`workloads/evaluate.py` alone."""
