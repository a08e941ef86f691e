"""Several rewards made into one."""
