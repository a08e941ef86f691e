"""Several reward models on one base: trained, averaged, and measured by where they disagree."""
