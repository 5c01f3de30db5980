"""What the compiler says of a plan, beside what was predicted."""
