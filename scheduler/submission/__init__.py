"""From scikit-learn's `fit` to rows and messages: what is wanted, whether it can be, stored, enqueued."""
