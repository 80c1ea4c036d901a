"""What trains the nets of an experiment and compares them."""
