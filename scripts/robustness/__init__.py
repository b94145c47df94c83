"""What `scripts/soak.py` and `scripts/chaos.py` are made of."""
