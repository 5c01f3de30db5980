"""Exit statuses by which a launcher knows what to do (docs/operations.md); 0, 1 and 2 are those of every program."""

# Stopped by the scheduler: start it again, this is no failure.
PREEMPTED = 75
# No step for too long, stacks dumped: start every process again, and count it as a failure.
HUNG = 76
