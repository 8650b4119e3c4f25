"""From data, scores and metrics to the result files of splits, benchmarks and comparisons."""
