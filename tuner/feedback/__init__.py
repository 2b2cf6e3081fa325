"""What people prefer: pairs of completions, a page to compare them on, and the answers as a data set."""
