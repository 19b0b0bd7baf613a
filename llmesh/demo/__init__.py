"""The model that ships with the program, as the bundle it is."""

from __future__ import annotations

from pathlib import Path

__all__ = ["SENTIMENT_ANALYZER"]

SENTIMENT_ANALYZER = Path(__file__).parent / "sentiment-analyzer"
"""Chinese and English sentiment, 5.5 MB; its README.md says what it is good for."""
