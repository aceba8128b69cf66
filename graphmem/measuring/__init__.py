"""The same workload for real, on the user's own device, held against the prediction."""
