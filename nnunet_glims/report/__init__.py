"""Leaderboards and their pictures. See docs/leaderboard.md."""
