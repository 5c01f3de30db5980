"""A product of rows with the matrix of the group that each row belongs to: what a mixture of experts computes."""
