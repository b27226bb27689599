"""What a leaf file of a method builds on."""

from __future__ import annotations

from perceptune.methods.parts.peft_layers import PeftLayers as PeftLayers
from perceptune.methods.parts.peft_layers import linear_maps as linear_maps

# Leaves import from here.
from perceptune.methods.slots._injection import Injection as Injection
from perceptune.methods.slots._method import EncoderShape as EncoderShape
from perceptune.methods.slots._method import Method as Method
from perceptune.methods.slots._method import Site as Site
from perceptune.methods.slots._options import InjectionOptions as InjectionOptions
from perceptune.methods.slots._peft import PeftInjection as PeftInjection
