"""The page of a compression: what a smaller model costs and is worth beside the original and other ones."""
