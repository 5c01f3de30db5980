"""The planner's predictions against one GPU."""
