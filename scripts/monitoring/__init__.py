"""What `scripts/monitor.py` is made of."""
