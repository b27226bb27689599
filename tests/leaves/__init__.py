"""Third-party leaves, as a user might have them."""
