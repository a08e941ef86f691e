"""What rewards say of texts, before a policy finds out."""
