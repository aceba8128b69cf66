"""How vLLM fills a GPU: defaults by version, weights, the profiling run, the budget, blocks."""
