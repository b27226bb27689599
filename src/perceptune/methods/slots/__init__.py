"""Methods on a frozen LM with slots, one file each. An extension builds on `perceptune.methods.slots.base`."""
