"""The loss of a vocabulary projection, without ever holding the logits of all tokens."""
