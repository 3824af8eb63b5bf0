"""Many runs: cells, pipelines, reference results, housekeeping."""
