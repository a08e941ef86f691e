"""The page of `make quickstart`, whose stages are runs in folders of their own below one."""
