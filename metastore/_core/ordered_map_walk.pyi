"""Look-ups in an ordered map, walks and counts, for other compiled modules only."""
