"""What is measured of policies and of models."""
