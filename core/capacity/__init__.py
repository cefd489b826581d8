"""What a run needs and how long it takes, on paper: memory and step time of every layout on a cluster."""
