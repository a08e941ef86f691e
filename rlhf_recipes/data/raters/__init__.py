"""Who gave the feedback: votes, how far raters agree, and whom to trust."""
