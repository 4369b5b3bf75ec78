"""Log-probabilities, losses and the training loop."""
