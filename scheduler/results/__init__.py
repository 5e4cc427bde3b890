"""What comes back: the handle of a search, and rows as scikit-learn has them."""
