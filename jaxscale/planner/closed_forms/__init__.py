"""Rules of thumb and worked problems in closed form, which the planner should agree with."""
