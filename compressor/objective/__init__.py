"""What is differentiated: batches, a forward pass and a loss."""
