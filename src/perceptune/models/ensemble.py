"""Ensembles: several runs on one frozen LM that answer together."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from perceptune.config.overrides import Override
from perceptune.errors import UserError
from perceptune.lm.generation.ensemble import EnsemblePrompt, MemberPrompt
from perceptune.models.base import AdaptedModel
from perceptune.models.build import BACKBONES
from perceptune.models.model_pool import Attachments, Borrowed, ModelPool
from perceptune.models.run_folder import load, read_recipe
from perceptune.models.run_location import local_run
from perceptune.models.slots.model import SlotModel
from perceptune.types import Features, Sample
from perceptune.utils.distributed import World
from perceptune.utils.fsdp_settings import FSDPSettings


class Member(NamedTuple):
    """A run of an ensemble; what its method adds to the shared LM is there only while it runs."""

    run: Path
    model: SlotModel
    attachments: Attachments


class Ensemble(SlotModel):
    """Runs whose mean of probabilities gives each next token: greedy, by beams, sampled or for ranking.

    Recipe, text format, answer cleaning and what consensus decoding needs are those of the first.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        first = members[0].model
        encoders: Any = first.encoders
        AdaptedModel.__init__(self, first.recipe, dict(encoders.items()), first.stores, first.text)
        self.lm, self.method, self.text_states = first.lm, first.method, first.text_states
        self.cleaning, self.frequencies, self.neighbours = first.cleaning, first.frequencies, first.neighbours
        self.use_reference_path, self.may_reuse_texts = False, False
        self.members, self.member_runs = list(members), tuple(member.run for member in members)
        self.models = nn.ModuleList(member.model for member in members)

    def setup(self, *, training: bool = False, sharded: bool = False) -> None:
        for member in self.members:
            with member.attachments.on():
                member.model.setup(training=training, sharded=sharded)

    def _shard(self, world: World, settings: FSDPSettings) -> None:
        with world.same_on_all_ranks():
            raise UserError("accelerate: FSDP is not for ensembles")

    def precompute(self, samples: Sequence[Sample], *given: Any, **more: Any) -> int:
        samples = list(samples)
        return sum(member.model.precompute(samples, *given, **more) for member in self.members)

    def prompt(self, samples: Sequence[Sample], features: Mapping[str, Features] | None = None) -> EnsemblePrompt:
        """Return the prompts with each member's slots; media are encoded once for members with the same features."""
        encoded: dict[tuple[int, ...], Mapping[str, Features]] = {}
        if features is not None:
            encoded[_same_stores(self)] = features
        prompts = []
        for _, model, attachments in self.members:
            model.text = self.text  # another data set may have words of its own
            key = _same_stores(model)
            with attachments.on():
                if key not in encoded:
                    encoded[key] = model.encode(samples)
                prompts.append(MemberPrompt(model.lm, model.prompt(samples, encoded[key]), attachments.on))
        first = prompts[0].prompt
        return EnsemblePrompt(first.ids, first.mask, first.slots, prompts)


def load_ensemble(
    runs: Sequence[str | Path], *, overrides: Sequence[Override] = (), trust: bool = False, **given: Any
) -> Ensemble:
    """Load runs on one frozen LM, which they share like their encoders, to answer together; arguments as in `load`.

    Raises `UserError` for runs of another LM or other text format than the first, and the errors of `load`.
    """
    if not runs:
        raise UserError("an ensemble needs at least one run")
    pool, members = ModelPool(), list[Member]()
    for place in runs:
        run = local_run(place)
        recipe = read_recipe(run, trust=trust)
        if not BACKBONES[recipe.backbone].shares_base:
            raise UserError(f"`{place}`: an ensemble is for runs with `backbone: splice`, not `{recipe.backbone}`")
        pool.plan(recipe)
        lent, alone = Borrowed(pool), list[Override]()
        if members:  # all in one dtype; the candidates of consensus decoding are those of the ensemble
            given["dtype"], alone = members[0].model.recipe.eval.dtype, ["decode.consensus=null"]
        model = load(run, overrides=[*overrides, *alone], trust=trust, parts=lent, **given)
        lent.attachments.take_off()
        assert isinstance(model, SlotModel)
        members.append(Member(run, model, lent.attachments))
        _require_alike(members[0], members[-1])
    _share_stores([member.model for member in members])
    return Ensemble(members)


def load_answering(run: str | Path, ensemble: Sequence[str | Path], **given: Any) -> AdaptedModel:
    """Load a run, or an ensemble of it and others; arguments as in `load`."""
    return load_ensemble([run, *ensemble], **given) if ensemble else load(run, **given)


def ensemble_name(ensemble: Sequence[str | Path]) -> str:
    """Return a name of an ensemble for files in the folder of its first run, from the names of the others."""
    return "-".join(["ensemble", *(Path(str(run)).resolve().name for run in ensemble)])


def _require_alike(first: Member, other: Member) -> None:
    """Raise `UserError` naming two runs that cannot answer together."""
    pair = f"`{first.run}` and `{other.run}` cannot answer together"
    a, b = first.model, other.model
    if a.fingerprint != b.fingerprint:
        raise UserError(f"{pair}: their frozen LMs differ: `{a.recipe.lm.id}` {a.fingerprint[:12]}, "
                        f"`{b.recipe.lm.id}` {b.fingerprint[:12]}")  # fmt: skip
    texts = a.recipe.text.model_dump(), b.recipe.text.model_dump()
    for key in texts[0]:
        if texts[0][key] != texts[1][key]:
            raise UserError(f"{pair}: text.{key} is {texts[0][key]!r} and {texts[1][key]!r}")
    if a.text.slots_in_text != b.text.slots_in_text:
        raise UserError(f"{pair}: their slots stand at different places of the text (method.slot_positions)")
    if {*a.stores} != {*b.stores}:
        raise UserError(f"{pair}: one takes {', '.join(sorted(a.stores))}, the other {', '.join(sorted(b.stores))}")


def _share_stores(models: Sequence[SlotModel]) -> None:
    """Let models with the same features of the same encoder use one store."""
    known = [store for model in models for store in model.stores.values()]
    for model in models:
        for name, store in model.stores.items():
            if not model.method.trains_encoders:
                model.stores[name] = next(one for one in known if one is store or _is_same(one, store))


def _is_same(one: Any, other: Any) -> bool:
    return one.encoder is other.encoder and one.levels == other.levels and one.description == other.description


def _same_stores(model: SlotModel) -> tuple[int, ...]:
    return tuple(id(store) for store in model.stores.values())
