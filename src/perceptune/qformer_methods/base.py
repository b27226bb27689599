"""What a leaf file of a method on a Q-Former builds on."""

from __future__ import annotations

# Leaves import from here.
from perceptune.blip import FrozenBlip as FrozenBlip
from perceptune.blip import Instruction as Instruction
from perceptune.methods._parts import TakenOver as TakenOver
from perceptune.qformer_methods._bottleneck import Bottleneck as Bottleneck
from perceptune.qformer_methods._bottleneck import BottleneckOptions as BottleneckOptions
from perceptune.qformer_methods._experts import ExpertsOptions as ExpertsOptions
from perceptune.qformer_methods._experts import GatedExperts as GatedExperts
from perceptune.qformer_methods._experts import ReleasedExperts as ReleasedExperts
from perceptune.qformer_methods._leftovers import QueryTransform as QueryTransform
from perceptune.qformer_methods._method import ENHANCED as ENHANCED
from perceptune.qformer_methods._method import QFormerMethod as QFormerMethod
from perceptune.qformer_methods._method import QFormerOptions as QFormerOptions
from perceptune.qformer_methods._method import Queried as Queried
from perceptune.qformer_methods._method import Seen as Seen
from perceptune.qformer_methods._naming import naming_loss as naming_loss
from perceptune.qformer_methods._peft import config_of as config_of
from perceptune.qformer_methods._peft import wrapped as wrapped
from perceptune.trained import Site as Site
