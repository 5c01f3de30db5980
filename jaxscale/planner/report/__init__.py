"""Questions as they are asked, and what is said beside the ranking: why, what instead, and a drawing."""
