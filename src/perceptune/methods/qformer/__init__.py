"""Methods on a Q-Former, one file each. An extension imports from `perceptune.methods.qformer.base`."""
