"""What a run achieved: baselines, and the report beside the result."""
