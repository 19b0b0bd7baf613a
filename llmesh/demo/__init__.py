"""The models that ship with the program, as the bundles they are."""

from __future__ import annotations

from pathlib import Path

__all__ = ["GPT_MINI", "SENTIMENT_ANALYZER"]

SENTIMENT_ANALYZER = Path(__file__).parent / "sentiment-analyzer"
"""Chinese and English sentiment, 5.5 MB; its README.md says what it is good for."""

GPT_MINI = Path(__file__).parent / "gpt-mini"
"""Small stories and poems in Chinese and English, 12 MB; its README.md says what it is good for."""
