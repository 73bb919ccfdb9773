"""The encoders: shared blocks in `layers`, one module a tower, one a family of public classes."""
