"""The peers of the ensemble: other ways to serve the same detector, and how they are compared."""
