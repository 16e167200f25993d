"""What an adapter or a bundle is, read from its files alone."""
