"""What `scripts/status.py` is made of: scraping, summing up, showing."""
