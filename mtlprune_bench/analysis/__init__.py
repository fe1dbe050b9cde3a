"""Where masks agree: the tasks' masks by layer, and the masks of several runs."""
