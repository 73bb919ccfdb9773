"""Images and texts to tensors."""
