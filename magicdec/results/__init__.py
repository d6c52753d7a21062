"""What the API returns: typed results, each with views for programs, data frames, notebooks and people."""
