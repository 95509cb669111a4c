"""A real shop to start with: Online Retail, a year of a British gift shop's purchases (see ATTRIBUTION.md)."""

from pathlib import Path

EVENTS: Path = Path(__file__).with_name("events.parquet")
"""386,278 purchases: user_id, item_id, timestamp (seconds UTC), rating (always null)."""

ITEMS: Path = Path(__file__).with_name("items.parquet")
"""3,659 products: item_id, title, category and description (both always null)."""
