"""A model and its workload, as sizes: parameters, FLOPs, tokens."""
