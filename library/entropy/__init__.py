"""Our own entropy coder: integers only, over frequency tables that are stored and never computed again."""
