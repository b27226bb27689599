"""Imports for the leaf files of the slot methods."""

from perceptune.methods.parts.peft_layers import PeftLayers, linear_maps

# Leaves import from here.
from perceptune.methods.slots._connector import LevelTokens
from perceptune.methods.slots._gated_attention import GatedAttention
from perceptune.methods.slots._injection import Injection
from perceptune.methods.slots._method import EncoderShape, Method, Site
from perceptune.methods.slots._options import InjectionOptions
from perceptune.methods.slots._peft import PeftInjection
from perceptune.methods.slots._token_layout import TokenLayout
