"""Trained methods: `slots` for a frozen LM with slots, `qformer` for InstructBLIP, `dma` as a tuner of PEFT."""
