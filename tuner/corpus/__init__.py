"""Raw text: cleaning, segments, streams, and what is hidden of it."""
