"""Promoting a detector: from a file to what a running server answers with, and back."""

from promotion.errors import GateError, PromotionError
from promotion.flow import Order, Outcome, promote, roll_back
from promotion.gates import Limits

__all__ = [
    "GateError",
    "Limits",
    "Order",
    "Outcome",
    "PromotionError",
    "promote",
    "roll_back",
]
