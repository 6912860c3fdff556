"""The embedded library: executor, jobs and results on disk."""
