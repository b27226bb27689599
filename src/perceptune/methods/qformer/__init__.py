"""Methods of the Q-Former backbone: one file each."""
