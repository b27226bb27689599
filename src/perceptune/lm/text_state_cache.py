"""Cache of texts' states at the input of one LM layer: computed once per distinct text if that saves time.

Below a method's first layer nothing is trained and no medium enters, so states there depend on the text alone. It is
decided once before training how all texts are treated, because a resumed run must batch its computations as the
uninterrupted one did: kept in memory if all fit, else on disk, else recomputed with each batch.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perceptune.errors import NotWritableError
from perceptune.lm.frozen_lm import FrozenLM
from perceptune.utils.row_store.cache import InMemoryStore, note_unwritable
from perceptune.utils.row_store.store import Store, digest_of, folder_for
from perceptune.utils.run_log import progress
from perceptune.utils.tensors import bytes_of, move, pad_left

Ids = tuple[int, ...]
GROUP = 16  # texts computed together
PAYS = 1.5  # average uses per text from which caching saves time
SAMPLED = 2**16  # number of values of a large weight that go into its digest
VERSION = 1  # increment when the same LM and text give other states


class TextStates:
    """States (T, d) of distinct texts; left-padded on request.

    States go to `folder` if they do not fit into `megabytes`, up to `disk_megabytes`; None = no disk cache.
    """

    def __init__(
        self, lm: FrozenLM, layer: int, megabytes: int, *, folder: Path | None = None, disk_megabytes: int = 0
    ) -> None:
        self.lm, self.layer = lm, layer
        self.budget, self.folder, self.disk_budget = megabytes * 2**20, folder, disk_megabytes * 2**20
        # None: recomputed with each batch.
        self._kept: InMemoryStore[bytes] | Store | None = InMemoryStore(megabytes)

    @property
    def kept(self) -> str:
        """Where states are cached: `memory`, `disk` or `nowhere`."""
        return "nowhere" if self._kept is None else "memory" if isinstance(self._kept, InMemoryStore) else "disk"

    def recompute(self) -> None:
        """Cache nothing: compute the states with each batch."""
        self._kept = None

    def count(self, texts: Iterable[Ids], uses: int) -> int | None:
        """Return the number of different texts that `precompute` would keep; None if none."""
        distinct = self._distinct(texts, int(uses / PAYS))
        return None if distinct is None else len(distinct)

    def precompute(self, texts: Iterable[Ids], uses: int, *, rank: int = 0, world: int = 1) -> None:
        """Compute the states of all texts that a training with `uses` of them needs, or decide not to cache any.

        Each of `world` processes, given the same texts, computes its part of those for the disk; `refresh` then loads
        the others'.
        """
        distinct = self._distinct(texts, int(uses / PAYS))
        if distinct is None:
            self._kept = None
            return
        if self._bytes(distinct) <= self.budget:
            rank, world = 0, 1
        else:
            assert self.folder is not None
            description = self._description()
            self._kept = Store(folder_for(self.folder, description), description)
        keys = {text: _key(text) for text in distinct}
        absent = set(self._kept.missing(list(keys.values())))  # type: ignore[union-attr]
        groups = [distinct[start : start + GROUP] for start in range(rank * GROUP, len(distinct), world * GROUP)]
        groups = [group for group in groups if any(keys[text] in absent for text in group)]
        with progress(sum(map(len, groups)), "states of texts") as bar:
            for group in groups:
                self._keep([keys[text] for text in group], self._compute(group))
                if self._kept is None:
                    return
                bar.advance(len(group))

    def refresh(self) -> None:
        """Load states that other processes have computed."""
        if isinstance(self._kept, Store):
            self._kept.refresh()

    def look_up(self, ids: Tensor, mask: Tensor) -> tuple[int, Tensor]:
        """Return the layer and the result of `get`."""
        return self.layer, self.get(ids, mask)

    def get(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return (B, T, d) on the LM's device for a left-padded batch (B, T) on the CPU; padding is arbitrary."""
        device = self.lm.device
        if self._kept is None:
            return self.lm.hidden_states_at(self.layer, move(ids, device), move(mask, device))
        lengths = mask.sum(-1).tolist()
        texts = [tuple(row[-n:]) for row, n in zip(ids.tolist(), lengths, strict=True)]
        distinct = {text: _key(text) for text in texts}
        rows = dict(zip(distinct, self._kept.read(list(distinct.values())), strict=True))
        missing = [text for text, row in rows.items() if row is None]
        if missing:  # damaged on disk, or not among the texts of `precompute`
            fresh = self._compute(missing)
            self._keep([distinct[text] for text in missing], fresh)
            rows |= dict(zip(missing, fresh, strict=True))
        width = ids.shape[1]
        padded = [torch.nn.functional.pad(rows[t], (0, 0, width - len(t), 0)) for t in texts]  # type: ignore[arg-type]
        return move(torch.stack(padded), device)

    def _keep(self, keys: Sequence[bytes], rows: Sequence[Tensor]) -> None:
        """Store states; if the cache is not writable, store none: these states did not fit into memory."""
        assert self._kept is not None
        new = set(self._kept.missing(keys))
        chosen = [(key, row) for key, row in zip(keys, rows, strict=True) if key in new]
        try:
            self._kept.append([key for key, _ in chosen], [row for _, row in chosen])
        except NotWritableError as error:
            assert self.folder is not None
            note_unwritable(self.folder, error.reason)
            self._kept = None

    def _compute(self, texts: Sequence[Ids]) -> list[Tensor]:
        """Compute states in one padded batch and keep them in main memory, which spares the GPU's."""
        ids, mask = (move(tensor, self.lm.device) for tensor in pad_left(texts, 0))
        states = self.lm.hidden_states_at(self.layer, ids, mask).cpu()
        return [row[-len(text) :].clone() for row, text in zip(states, texts, strict=True)]

    def _distinct(self, texts: Iterable[Ids], most: int) -> list[Ids] | None:
        """Return each text once, short ones first; None if there are more than `most` or their states fit nowhere."""
        seen: set[Ids] = set()
        room = max(self.budget, self.disk_budget if self.folder is not None else 0)
        for text in texts:
            if text not in seen:
                seen.add(text)
                room -= self._bytes([text])
                if room < 0 or len(seen) > most:
                    return None
        return sorted(seen, key=lambda text: (len(text), text))

    def _bytes(self, texts: Iterable[Ids]) -> int:
        return sum(map(len, texts)) * self.lm.hidden_size * self.lm.dtype.itemsize

    def _description(self) -> dict[str, Any]:
        """Return everything that a row depends on beside its text."""
        return {
            "kind": "states of texts", "version": VERSION, "lm": self._weights().hex(), "layer": self.layer,
            "config": json.loads(self.lm.config.to_json_string()), "dtype": str(self.lm.dtype).removeprefix("torch."),
            "shape": [-1, self.lm.hidden_size],
        }  # fmt: skip

    def _weights(self) -> bytes:
        """Return a digest of the weights that texts pass through, none of which is trained.

        Large weights are sampled evenly: hashing billions of values takes longer than the cache saves. Embeddings are
        hashed whole: an LM with other vectors for a few tokens may differ in nothing else.
        """
        embeddings = self.lm.model.get_input_embeddings().weight.data_ptr()
        above = tuple(f"{self.lm.layers_path}.{index}." for index in range(self.layer, self.lm.n_layers))
        digests = [
            _weight_digest(name, tensor, whole=tensor.data_ptr() == embeddings)
            for name, tensor in self.lm.model.state_dict().items()
            if isinstance(tensor, Tensor) and not name.startswith(above)
        ]
        return digest_of(*digests)


def _key(text: Ids) -> bytes:
    return digest_of(repr(text).encode())


def _weight_digest(name: str, tensor: Tensor, *, whole: bool) -> bytes:
    """Return a digest of a weight's shape and bits; of at most `SAMPLED` values unless `whole`."""
    data = bytes_of(tensor, most=None if whole else SAMPLED)
    return digest_of(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode(), data)
