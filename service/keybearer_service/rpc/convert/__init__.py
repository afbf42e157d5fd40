"""Proto <-> model: the only bridge. Reading refuses what the model cannot hold."""
