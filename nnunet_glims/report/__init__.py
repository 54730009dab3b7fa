"""Leaderboards and their figures. See docs/leaderboard.md."""
