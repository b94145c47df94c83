"""What `scripts/balance.py` is made of."""
