"""Programs that nobody vouches for, such as those that a model writes, and how they are run all the same."""
