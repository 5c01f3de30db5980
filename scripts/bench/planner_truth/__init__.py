"""Holds the planner against published results: a file of cases, each with what is given and what was printed."""
