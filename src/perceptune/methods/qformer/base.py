"""What a leaf file of a method on a Q-Former builds on."""

from __future__ import annotations

# Leaves import from here.
from perceptune.lm.frozen_blip import FrozenBlip as FrozenBlip
from perceptune.lm.frozen_blip import Instruction as Instruction
from perceptune.methods.base import Site as Site
from perceptune.methods.parts.unfrozen import UnfrozenParameters as UnfrozenParameters
from perceptune.methods.qformer._bottleneck import Bottleneck as Bottleneck
from perceptune.methods.qformer._bottleneck import BottleneckOptions as BottleneckOptions
from perceptune.methods.qformer._experts import ExpertsOptions as ExpertsOptions
from perceptune.methods.qformer._experts import GatedExperts as GatedExperts
from perceptune.methods.qformer._experts import ReleasedExperts as ReleasedExperts
from perceptune.methods.qformer._leftovers import QueryTransform as QueryTransform
from perceptune.methods.qformer._method import ENHANCED as ENHANCED
from perceptune.methods.qformer._method import QFormerMethod as QFormerMethod
from perceptune.methods.qformer._method import QFormerOptions as QFormerOptions
from perceptune.methods.qformer._method import QFormerOutput as QFormerOutput
from perceptune.methods.qformer._method import TrainingPass as TrainingPass
from perceptune.methods.qformer._naming import word_grounding_loss as word_grounding_loss
from perceptune.methods.qformer._peft import config_of as config_of
from perceptune.methods.qformer._peft import wrapped as wrapped
