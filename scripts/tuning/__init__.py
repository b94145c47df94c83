"""Tuning a served ensemble to a machine: what is tried, how it is measured, what is written."""
