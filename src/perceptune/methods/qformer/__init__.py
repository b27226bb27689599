"""Methods on a Q-Former, one file each. An extension builds on `perceptune.methods.qformer.base`."""
