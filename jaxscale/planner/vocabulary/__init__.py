"""What everything else is written in: formulas, layouts, stacks, terms, predictions."""
