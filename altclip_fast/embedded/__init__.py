"""What the small model that ships with the package is trained on: synthetic scenes and handwritten digits."""
