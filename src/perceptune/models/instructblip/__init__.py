"""The backbone `instructblip`: an InstructBLIP or BLIP-2 with a method inside its Q-Former."""
